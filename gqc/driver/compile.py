"""`gqc.compile`: a torch model in, the same model on grouped-quantized kernels out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from xdsl.dialects.func import FuncOp
from xdsl.passes import ModulePass

from gqc.checkpoints.source import Source
from gqc.dialects import gq
from gqc.driver.analyses import (
    dead_layers,
    refuse_taken_names,
    refuse_uncalibrated,
    refuse_unloaded,
    refuse_without_layers,
    uses_calibration,
)
from gqc.driver.compilation import Compilation
from gqc.driver.materialize import Quantized, materialize
from gqc.driver.report import Report
from gqc.driver.report_rows import (
    channels_kept,
    key_of,
    launched,
    rows_of,
    rows_of_embeddings,
    rows_outside,
)
from gqc.driver.result import CompiledModel, Dump, Result, attach
from gqc.driver.stored_weights import take_weights
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled, sqnr
from gqc.frontend.arguments import refuse_model, refuse_weights
from gqc.frontend.capture import capture
from gqc.frontend.export_fx import export_functions, export_fx
from gqc.frontend.fast_paths import call_linear_layers
from gqc.frontend.import_fx import import_fx
from gqc.frontend.linears import capture_linears, copy_shared, is_conv1d, replace_modules
from gqc.frontend.prepare import needs_preparing
from gqc.frontend.signature import Imported
from gqc.passes.helpers import merged
from gqc.passes.pipeline import extend, pipeline, run_stages
from gqc.passes.split_m_buckets import refuse_other_values
from gqc.progress import bar_of
from gqc.quantization import quantize
from gqc.quantization.input_error import input_formats, measure_of
from gqc.quantization.quantized import Quantized as QuantizedModel
from gqc.runtime.arena import Arena
from gqc.schemes import SchemeLike, scheme_list
from gqc.targets import resolve


def compile(
    model: nn.Module | fx.GraphModule | ExportedProgram,
    example_inputs: Any = None,
    *,
    scheme: SchemeLike | Mapping[str, SchemeLike] | None = None,
    weights: Source | None = None,
    target: str = "auto",
    ignore: Sequence[str] = (),
    lm_head: bool = False,
    dynamic_shapes: Any = None,
    calibration: Iterable[Any] | None = None,
    deterministic: Literal["batch"] | None = None,
    passes: Mapping[str, Sequence[ModulePass]] | None = None,
    dump_ir: str | Path | None = None,
    progress: bool | None = None,
) -> CompiledModel:
    """Compile a model: quantize its linear layers and run them on generated kernels.

    With `example_inputs` (a tensor, a tuple, a dict of keyword inputs, or a pair of both) the whole
    model is captured and an `fx.GraphModule` comes back. Without, the result keeps the model's type
    and methods (`generate` works), its linear layers replaced. Either has `.report()`, `.kernels`
    and `.ir(stage)`, and is in evaluation mode. The model itself is not changed; what stays dense
    shares its storage.

    scheme: a preset (`int4_g128`, which is the default, `int8_row_sym`), a `gqc.Scheme`, or a map
    from patterns of module names to either, first match first. weights: a checkpoint
    (`open_checkpoint`) or what `gqc.quantize` gave: the model takes all parameters from there, and
    may be on the meta device; weights that are quantized stay as they are, and without a scheme the
    others are left dense. ignore: patterns of layers to leave as they are. target:
    `auto` (where the model's parameters lie), `cpu`, or a row of `gqc.targets.TARGETS`. lm_head:
    quantize the output head too. dynamic_shapes: as of `torch.export.export`, where the inferred
    ones fall short. calibration: inputs of the model, any number, each as `example_inputs` are, for
    schemes that need them (`int4_g64+awq+gptq`, `nvfp4_static`) or make use of them: the model is
    first quantized by `gqc.quantize`. deterministic: with `batch` a
    quantized layer gives a row of its input the same bits in any batch, at some cost
    (docs/determinism.md); without, the report names the layers that do not. passes: passes of your
    own by the stage (`imported`, `grouped`, `legal`, `kernels`) at whose end they run. dump_ir: a
    folder for the IR after every pass and for every kernel. progress: show a progress bar; None
    does where standard error is a terminal.

    Raises GqcError, before any work on weights, on an unknown scheme, target or pattern, on layers
    whose K their group does not divide, and on what the target cannot do; each names all layers.
    """
    compilation = Compilation(
        model=model,
        example_inputs=example_inputs,
        scheme=scheme,
        weights=weights,
        target=target,
        ignore=ignore,
        lm_head=lm_head,
        dynamic_shapes=dynamic_shapes,
        calibration=calibration,
        deterministic=deterministic,
        passes=passes or {},
        dump_ir=dump_ir,
        bar=bar_of(progress),
    )
    try:
        for step in STEPS:
            step(compilation)
    finally:
        compilation.bar.stop()
    return attach(compilation.compiled, compilation.result)


Step = Callable[[Compilation], None]


def check_arguments(c: Compilation) -> None:
    """Refuse what is no model, or no source of weights."""
    if not isinstance(c.model, nn.Module | ExportedProgram):
        is_quantized = isinstance(c.model, QuantizedModel)
        remedy = "its model, and this as weights=" if is_quantized else "an nn.Module"
        raise GqcError(f"cannot compile a {type(c.model).__name__}: give {remedy}")
    if isinstance(c.model, nn.Module):
        refuse_model(c.model)
    if c.weights is not None:
        refuse_weights(c.weights)
    if c.weights is not None and c.calibration is not None:
        raise GqcError("weights are given, and calibration quantizes the model's: give one of them")
    if c.dynamic_shapes is not None and not c.whole:
        raise GqcError("dynamic_shapes are those of example_inputs: give these too")
    if c.deterministic is not None:
        refuse_other_values(c.deterministic)


def resolve_options(c: Compilation) -> None:
    """Look up the target and the schemes; open the folder of a dump."""
    c.machine = resolve(c.target, c.model)
    if c.scheme is None:
        c.scheme = "int4_g128" if c.weights is None else {}
    c.schemes = scheme_list(c.scheme, c.ignore)
    c.dump = None if c.dump_ir is None else Dump(c.dump_ir)


def prepare(c: Compilation) -> None:
    """Make linear layers of stacked experts, packed attention and computed weights, in a copy."""
    if isinstance(c.model, nn.Module) and needs_preparing(c.model):
        c.model = copy_shared(c.model)


def calibrate(c: Compilation) -> None:
    """Quantize by `gqc.quantize` where inputs of the model make a difference."""
    if c.weights is not None or not uses_calibration(c.schemes, c.calibration):
        return
    if isinstance(c.model, nn.Module) and not isinstance(c.model, fx.GraphModule):
        shown = {"progress": not c.bar.disable}
        options = {"ignore": c.ignore, "lm_head": c.lm_head, "calibration": c.calibration}
        c.weights = quantize(c.model, scheme=c.scheme, **options, **shown)  # pyright: ignore
    elif c.calibration is not None:
        raise GqcError("only an nn.Module can be calibrated: give the model itself")


def take_stored(c: Compilation) -> None:
    """Have a copy of the model take the weights of a source, those of linear layers as stored."""
    c.measure = measure_of(c.model, c.weights, c.example_inputs)
    if c.weights is not None:
        c.stored = take_weights(c.model, c.weights)
        c.model = c.stored.model


def import_model(c: Compilation) -> None:
    """Capture the model whole, or its linear layers one by one, as IR."""
    if c.whole:
        c.imported = import_fx(capture(c.model, c.example_inputs, c.dynamic_shapes))
    else:
        c.layers = copy_shared(c.model)
        c.imported = capture_linears(c.layers)
    refuse_taken_names(c.layers, c.imported)
    refuse_unloaded(c.imported)
    if c.stored is not None:
        c.imported.weights = c.stored.side_store(c.imported.weights)
    c.source = c.imported.module.clone()
    if dead := dead_layers(c.module):
        warn(f"left out, for nothing reads what they compute: {', '.join(dead)}")


def plan(c: Compilation) -> None:
    """Make the list of passes; from here on there is progress to see."""
    c.bar.start()
    entries = () if c.stored is None else map(str, c.stored.entries.values())
    options = (c.schemes, c.machine.name, c.lm_head, tuple(entries), c.deterministic or "")
    c.stages = extend(pipeline(*options), c.passes)


def group(c: Compilation) -> None:
    """Run the stages `imported` and `grouped`, and see what they say of layers."""
    run(c, "imported", "grouped")
    refuse_without_layers(c.module)
    refuse_uncalibrated(c.module, c.imported.weights)
    c.channels = channels_kept(c.module)
    c.costs = c.measure(input_formats(c.module, c.imported.weights))


def legalize(c: Compilation) -> None:
    """Run the stage `legal`: every decision is made."""
    run(c, "legal")
    c.report = Report(c.machine.name, tuple(rows_of(c.module)))


def lower(c: Compilation) -> None:
    """Run the stage `kernels`."""
    run(c, "kernels")


def materialize_weights(c: Compilation) -> None:
    """Quantize and pack, once, now; what still reads stored weights as dense ones gets them."""
    c.bar.update(c.task, total=sum(len(merged(op.weight)) for op in packs_of(c)))

    def observe(weight: torch.Tensor | None, quantized: BlockScaled, op: Quantized) -> None:
        key = key_of(op)
        if weight is not None:
            c.noise[key] = sqnr(weight, quantized)
        done = "packing" if weight is None else "quantizing"
        c.bar.update(c.task, advance=1, description=f"{done} {key[0]}")

    materialize(c.module, c.imported.weights, observe, Arena().keep)
    if c.stored is not None:
        c.stored.settle(c.imported, c.layers)
        c.noise |= c.stored.noise


def report(c: Compilation) -> None:
    """Complete the report with errors, kernels and what lies outside the layers."""
    rows = c.report.completed(c.noise).measured(c.costs)
    c.report = rows.lowered(launched(c.module), c.channels)
    outside = () if c.layers is None else rows_outside(c.layers, c.report.rows)
    stored = c.stored
    embeddings = () if stored is None else rows_of_embeddings(stored.model, stored.tables)
    c.report = Report(c.report.target, (*c.report.rows, *embeddings, *outside))
    if all(row.decision == "kept" for row in c.report.rows):
        warn("every layer was kept as it is: report() says why")
    c.result = Result(c.source, c.module, c.stages, c.report)
    if c.dump is not None:
        c.dump.kernels(c.result.kernels)


def export(c: Compilation) -> None:
    """Make a graph module of the IR, or put one in the place of each layer."""
    c.compiled = export_fx(c.imported) if c.layers is None else rebuild(c.layers, c.imported)


STEPS: tuple[Step, ...] = (
    check_arguments,
    resolve_options,
    prepare,  # a copy, if anything is to be made of the model's modules
    calibrate,  # gqc.quantize, if the scheme needs inputs
    take_stored,  # parameters of a checkpoint
    import_model,  # torch.export → fx → IR, or the layers alone
    plan,  # gqc/passes/pipeline.py
    group,  # imported → grouped: what is quantized, and how
    legalize,  # grouped → legal: what the target can do
    lower,  # legal → kernels
    materialize_weights,  # dense weights → packed parts
    report,
    export,  # IR → fx → torch
)
"""The compiler, in order: each step reads and adds to one `Compilation`."""


def run(c: Compilation, *names: str) -> None:
    """Run stages of the pipeline, showing and dumping what each pass leaves."""

    def after(name: str, module: Any) -> None:
        c.bar.update(c.task, description=name)
        if c.dump is not None:
            c.dump.after(name, module)

    run_stages(c.module, [stage for stage in c.stages if stage.name in names], after)


def packs_of(c: Compilation) -> list[gq.PackOp]:
    """The work on weights that is left to do."""
    return [op for op in c.module.walk() if isinstance(op, gq.PackOp)]


def warn(message: str) -> None:
    """A warning at the call of `gqc.compile`."""
    warnings.warn(message, stacklevel=4)


def rebuild(model: nn.Module, imported: Imported) -> nn.Module:
    """Replace the linear layers of the model, and keep what else these say of themselves."""
    quantized = [
        function.sym_name.data
        for function in imported.module.ops
        if isinstance(function, FuncOp)
        and any(isinstance(op, gq.LaunchOp) for op in function.walk())
    ]
    modules = export_functions(imported, quantized)
    for path, module in modules.items():
        said = vars(model.get_submodule(path))  # in_features, out_features
        if is_conv1d(model.get_submodule(path)):
            said = {**said, "in_features": said["nx"], "out_features": said["nf"]}
        vars(module).update({k: v for k, v in said.items() if k not in vars(module)})
    replace_modules(model, modules)
    call_linear_layers(model)
    return modules.get("", model)  # the model may itself be a linear layer
