"""Lower quantizers: activations that are quantized as the model runs become launches."""

from __future__ import annotations

from dataclasses import dataclass, field

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, TensorType
from xdsl.ir import Operation, Region
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq, tile
from gqc.passes.helpers import weight_of
from gqc.passes.quantize_kernel import Decoded, Packed, build_quantize, spelled
from gqc.targets import ANY


@dataclass(frozen=True)
class LowerQuantizers(ModulePass):
    """legal → kernels: casts of activations are launches of kernels, which the module holds.

    `dcast(qcast(x))` launches a kernel that writes the decoded values, `pack(qcast(x))` one that
    writes codes and scales as a matrix unit reads them. Either computes x itself where that is a
    `gq.fused`. Equal kernels are one.
    """

    name = "lower-quantizers"

    target: str

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        lowering = Lowering(self.target)
        for user in [o for o in op.walk() if isinstance(o, gq.DcastOp | gq.PackOp)]:
            cast = user.operands[0].owner
            if isinstance(cast, gq.QcastOp) and weight_of(cast.source) is None:
                lowering.lower(user, cast)
        op.body.block.add_ops(lowering.kernels.values())


@dataclass
class Lowering:
    """The kernels of one module, by name."""

    target: str
    kernels: dict[str, tile.KernelOp] = field(default_factory=dict)
    bodies: dict[str, list[Region]] = field(default_factory=dict)
    """Of what is fused into kernels, by their names without variant and bucket."""

    def lower(self, user: gq.DcastOp | gq.PackOp, cast: gq.QcastOp) -> None:
        """Replace one use of a cast by a launch, and the cast once nothing else uses it."""
        scale, results = cast.tensor_scale, list(user.results)
        if scale is not None:  # the last result of either
            results.pop().replace_all_uses_with(scale)
        results.reverse()  # a kernel writes codes last
        fused = cast.source.owner
        sources = fused.inputs if isinstance(fused, gq.FusedOp) else [cast.source]
        body = fused.body.clone() if isinstance(fused, gq.FusedOp) else None
        inputs = [*sources, *([] if scale is None else [scale])]
        types = [result.type for result in results]
        launch = gq.LaunchOp([self.kernel(user, cast)], [ANY], inputs, (), None, types, body)
        launch.location = user.location
        for old, new in zip(results, launch.outputs, strict=True):
            new.name_hint = old.name_hint
            old.replace_all_uses_with(new)
        Rewriter.insert_op(launch, InsertPoint.before(user))
        erase(user)
        if not cast.result.uses:
            erase(cast)
            if isinstance(fused, gq.FusedOp) and not fused.result.uses:
                erase(fused)

    def kernel(self, user: gq.DcastOp | gq.PackOp, cast: gq.QcastOp) -> str:
        """Name of the kernel of one use, which is built the first time."""
        type_, x_type = gq.block_scaled(cast.result), cast.source.type
        assert type_ is not None and isinstance(x_type, TensorType)
        rule = cast.scale_rule.data
        form = form_of(user)
        fused = cast.source.owner if isinstance(cast.source.owner, gq.FusedOp) else None
        after = "" if fused is None else f"_{'_'.join(spelled(fused).split(', '))}"
        name = (
            f"quantize{after}_{x_type.element_type}_{type_.element}_g{type_.block.data[-1].data}_"
            f"{type_.scale}_{rule}{'_tensor_scale' if type_.has_tensor_scale else ''}_"
            f"{x_type.get_shape()[-1]}_{form}"
        )
        name = f"{self.variant(name, fused)}_any"
        if name not in self.kernels:
            self.kernels[name] = build_quantize(name, self.target, x_type, type_, rule, form, fused)
        return name

    def variant(self, name: str, fused: gq.FusedOp | None) -> str:
        """The name, with a number if bodies that differ, in a constant say, have it too."""
        if fused is None:
            return name
        bodies = self.bodies.setdefault(name, [])
        same = (n for n, body in enumerate(bodies) if body.is_structurally_equivalent(fused.body))
        number = next(same, len(bodies))
        if number == len(bodies):
            bodies.append(fused.body.clone())
        return f"{name}_{number}" if number else name


def form_of(user: gq.DcastOp | gq.PackOp) -> Decoded | Packed:
    """What a kernel writes in the place of an operation."""
    if isinstance(user, gq.DcastOp):
        return Decoded(gq.element_type(user.result))
    return Packed(user.layout.scales.data)


def erase(op: Operation) -> None:
    op.detach()
    op.erase()
