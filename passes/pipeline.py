"""The compiler: every pass from a captured model to kernels, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass
from xdsl.transforms.dead_code_elimination import DeadCodeElimination

from gqc.dialects.text import context
from gqc.errors import GqcError
from gqc.passes.adopt_weights import AdoptWeights
from gqc.passes.assign_layouts import AssignLayouts
from gqc.passes.contracts import verify_stage
from gqc.passes.fold_channels import FoldChannels
from gqc.passes.fold_weights import FoldWeights
from gqc.passes.fuse_epilogues import FuseEpilogues
from gqc.passes.fuse_producers import FuseProducers
from gqc.passes.legalize import Legalize
from gqc.passes.lower_channels import LowerChannels
from gqc.passes.lower_quantizers import LowerQuantizers
from gqc.passes.lower_to_tile import LowerToTile
from gqc.passes.merge_linears import MergeLinears
from gqc.passes.quantize_activations import QuantizeActivations
from gqc.passes.quantize_weights import QuantizeWeights
from gqc.passes.recognize_linears import RecognizeLinears
from gqc.passes.split_m_buckets import SplitMBuckets


@dataclass(frozen=True)
class Stage:
    """Passes that lead from one contract to the next."""

    name: str
    passes: tuple[ModulePass, ...]


def pipeline(
    schemes: tuple[str, ...],
    target: str,
    lm_head: bool = False,
    stored: tuple[str, ...] = (),
    deterministic: str = "",
) -> tuple[Stage, ...]:
    """The stages of a compilation.

    `schemes` are `pattern=scheme` entries, first match first; `stored` are of stored weights
    (`gqc.passes.adopt_weights.Entry`); `deterministic` is an option of `split-m-buckets`.
    """
    return (
        Stage("imported", ()),
        Stage(
            "grouped",
            (
                DeadCodeElimination(),  # what nobody reads and has no effect
                RecognizeLinears(),  # linear, addmm, mm, matmul → gq.matmul_t
                AdoptWeights(stored),  # gq.weight of a quantized type, where it is stored so
                QuantizeWeights(schemes, lm_head),  # gq.qcast of each weight, by scheme
                FoldChannels(),  # gq.scale_channels, gq.gather_channels into the weights before
                QuantizeActivations(schemes),  # gq.qcast of inputs, where the scheme says so
                MergeLinears(),  # q, k, v and gate, up: one gq.matmul_t of a gq.concat
            ),
        ),
        Stage(
            "legal",
            (
                Legalize(target),  # native, or an explicit gq.dcast and the reason
                AssignLayouts(target),  # gq.pack, gq.unpack in the target's layout
                SplitMBuckets(target, deterministic),  # a tile schedule for each bucket of rows
                LowerChannels(),  # mul, index_select: what was not folded
                FuseProducers(),  # gq.fused: RMSNorm, SiLU·mul … into the quantizer that reads it
            ),
        ),
        Stage(
            "kernels",
            (
                LowerQuantizers(target),  # gq.launch of tile kernels that quantize activations
                LowerToTile(target),  # gq.launch of tile kernels, bias in the epilogue
                FuseEpilogues(),  # activations, residuals, SiLU·mul into the matmul before
                FoldWeights(),  # gq.materialize: quantize and pack, once, before the model runs
            ),
        ),
    )


def extend(
    stages: Sequence[Stage], passes: Mapping[str, Sequence[ModulePass]]
) -> tuple[Stage, ...]:
    """The stages with more passes at the ends of those named.

    Raises GqcError on unknown names, and on passes that are called as a stage is.
    """
    unknown = passes.keys() - {stage.name for stage in stages}
    if unknown:
        known = ", ".join(stage.name for stage in stages)
        raise GqcError(f"no stage is called {', '.join(sorted(unknown))}: there are {known}")
    added = {pass_.name for each in passes.values() for pass_ in each}
    if taken := sorted(added & {stage.name for stage in stages}):
        raise GqcError(f"a pass cannot be called {taken[0]}: that is a stage; rename the pass")
    return tuple(Stage(s.name, (*s.passes, *passes.get(s.name, ()))) for s in stages)


Callback = Callable[[str, ModuleOp], None]
"""Called with the name of a stage or pass and the module that it left."""


def run_stages(module: ModuleOp, stages: Iterable[Stage], after: Callback | None = None) -> None:
    """Run stages in place, each contract verified where its stage ends."""
    ctx = context()
    for stage in stages:
        for pass_ in stage.passes:
            pass_.apply(ctx, module)
            if after is not None:
                after(pass_.name, module)
        verify_stage(module, stage.name)
        if after is not None:
            after(stage.name, module)
