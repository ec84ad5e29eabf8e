"""`gqc.compile`: a torch model in, the same model on grouped-quantized kernels out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import Progress
from torch import fx, nn
from torch.export import ExportedProgram
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.passes import ModulePass
from xdsl.transforms.dead_code_elimination import DeadCodeElimination

from gqc.arguments import refuse_model, refuse_weights
from gqc.compilation import ATTACHED, Compilation, Dump, attach
from gqc.dialects import gq
from gqc.errors import GqcError
from gqc.frontend.capture import capture
from gqc.frontend.export_fx import export_functions, export_fx
from gqc.frontend.fast_paths import call_linear_layers
from gqc.frontend.import_fx import import_fx
from gqc.frontend.linears import capture_linears, copy_shared, is_conv1d, replace_modules
from gqc.frontend.prepare import needs_preparing
from gqc.frontend.signature import Imported
from gqc.passes.fold_channels import FoldChannels
from gqc.passes.fold_weights import FoldWeights, FoldWeightsInto, Quantized
from gqc.passes.helpers import layer_name, matmuls, merged
from gqc.passes.pipeline import Stage, extend, pipeline, run_stages
from gqc.passes.quantize_activations import QuantizeActivations
from gqc.passes.recognize_linears import RecognizeLinears, linear_calls
from gqc.passes.split_m_buckets import refuse_other_values
from gqc.quantization import quantize
from gqc.quantization.input_error import Measure, input_formats, measure_of, unmeasured
from gqc.quantization.quantized import Quantized as QuantizedModel
from gqc.report import CastKey, Report, sqnr
from gqc.report_rows import channels_kept, key_of, launched, rows_of, rows_outside
from gqc.runtime.arena import Arena
from gqc.schemes import KEEP, Patterns, SchemeLike, parse_scheme, scheme_list
from gqc.stored_weights import take_weights
from gqc.targets import resolve

if TYPE_CHECKING:
    import torch

    from gqc.checkpoints.source import Source
    from gqc.formats.block_scaled import BlockScaled


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
) -> Any:
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
    if not isinstance(model, nn.Module | ExportedProgram):
        is_quantized = isinstance(model, QuantizedModel)
        remedy = "its model, and this as weights=" if is_quantized else "an nn.Module"
        raise GqcError(f"cannot compile a {type(model).__name__}: give {remedy}")
    if isinstance(model, nn.Module):
        refuse_model(model)
    if weights is not None:
        refuse_weights(weights)
    if deterministic is not None:
        refuse_other_values(deterministic)
    machine = resolve(target, model)
    if isinstance(model, nn.Module) and needs_preparing(model):
        model = copy_shared(model)
    if scheme is None:
        scheme = "int4_g128" if weights is None else {}
    schemes = scheme_list(scheme, ignore)
    if weights is None:
        options = {"ignore": ignore, "lm_head": lm_head, "progress": progress}
        weights = calibrated(model, schemes, calibration, scheme=scheme, **options)
    elif calibration is not None:
        raise GqcError("weights are given, and calibration quantizes the model's: give one of them")
    stored = None if weights is None else take_weights(model, weights)
    measure = measure_of(model, weights, example_inputs)
    model = model if stored is None else stored.model
    entries = {} if stored is None else stored.entries
    stages = pipeline(
        schemes, machine.name, lm_head, tuple(map(str, entries.values())), deterministic or ""
    )
    stages = extend(stages, passes or {})
    parts = None  # a copy of the model, whose linear layers alone are compiled
    if example_inputs is not None or isinstance(model, ExportedProgram | fx.GraphModule):
        imported = import_fx(capture(model, example_inputs, dynamic_shapes))
    elif dynamic_shapes is not None:
        raise GqcError("dynamic_shapes are those of example_inputs: give these too")
    else:
        parts = copy_shared(model)
        imported = capture_linears(parts)
    refuse_taken_names(parts, imported)
    refuse_unloaded(imported)
    if stored is not None:
        imported.weights = stored.side_store(imported.weights)
    source = imported.module.clone()
    dump = Dump(dump_ir) if dump_ir is not None else None
    report = lower(imported, stages, machine.name, dump, progress, measure)
    if stored is not None:
        stored.settle(imported, parts)
        report = report.completed(stored.noise)
    if parts is not None:
        report = Report(report.target, (*report.rows, *rows_outside(parts, report.rows)))
    if all(row.decision == "kept" for row in report.rows):
        warnings.warn("every layer was kept as it is: report() says why", stacklevel=2)
    compilation = Compilation(source, imported.module, stages, report)
    if dump is not None:
        dump.kernels(compilation.kernels)
    return attach(export_fx(imported) if parts is None else rebuild(parts, imported), compilation)


def refuse_unloaded(imported: Imported) -> None:
    """Raise GqcError if there are weights on the meta device."""
    if unloaded := [name for name, weight in imported.weights.items() if weight.is_meta]:
        raise GqcError(
            f"{len(unloaded)} weights are on the meta device, {unloaded[0]} first: load them"
        )


def calibrated(
    model: nn.Module | ExportedProgram,
    schemes: Sequence[str],
    inputs: Iterable[Any] | None,
    **options: Any,
) -> Source | None:
    """The model quantized by `gqc.quantize`, where its inputs make a difference or change.

    Raises GqcError as that does, and if inputs are given for a program, whose layers have no hooks.
    """
    asked = [parse_scheme(scheme) for _, scheme in Patterns(schemes).entries if scheme != KEEP]
    if inputs is None and not any(each.needs_calibration or each.transforms for each in asked):
        return None
    if not isinstance(model, nn.Module) or isinstance(model, fx.GraphModule):
        if inputs is not None:
            raise GqcError("only an nn.Module can be calibrated: give the model itself")
        return None
    return quantize(model, calibration=inputs, **options)


def refuse_uncalibrated(module: ModuleOp, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise GqcError if a static scale was not calibrated."""
    scales = [w.key for w in module.walk() if isinstance(w, gq.WeightOp) and w.key not in weights]
    if scales:
        raise GqcError(
            f"no calibrated {', '.join(scales)}: these layers are called as functions, or were "
            "captured before; give them a scheme whose tensor scale is dynamic"
        )


def lower(
    imported: Imported,
    stages: Sequence[Stage],
    target: str,
    dump: Dump | None,
    progress: bool | None,
    measure: Measure = unmeasured,
) -> Report:
    """Run the stages on an imported model and its weights, in place, and report on it."""
    noise, costs = dict[CastKey, float](), dict[str, float]()
    report, channels = Report(target, ()), dict[str, str]()
    layers = set(map(layer_name, linear_calls(imported.module)))
    console = Console(stderr=True)
    shown = console.is_terminal if progress is None else progress
    with Progress(console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("passes")

        def observe(weight: torch.Tensor | None, quantized: BlockScaled, op: Quantized) -> None:
            key = key_of(op)
            if weight is not None:
                noise[key] = sqnr(weight, quantized)
            done = "packing" if weight is None else "quantizing"
            bar.update(task, advance=1, description=f"{done} {key[0]}")

        def after(name: str, module: ModuleOp) -> None:
            nonlocal report, channels, costs, layers
            bar.update(task, description=name)
            if name == DeadCodeElimination.name:
                layers -= set(map(layer_name, linear_calls(module)))
            if name == RecognizeLinears.name and not any(matmuls(module)):
                raise GqcError(
                    "the model has no linear layer with a stored weight: nothing to compile"
                )
            if name == FoldChannels.name:
                channels = channels_kept(module)
            if name == QuantizeActivations.name:
                refuse_uncalibrated(module, imported.weights)
                costs = measure(input_formats(module, imported.weights))
            if name == "legal":
                report = Report(target, tuple(rows_of(module)))
                packs = (op for op in module.walk() if isinstance(op, gq.PackOp))
                bar.update(task, total=sum(len(merged(op.weight)) for op in packs))
            if dump is not None:
                dump.after(name, module)

        fold = FoldWeightsInto(imported.weights, observe, Arena().keep)
        run_stages(imported.module, [stage.replacing(FoldWeights, fold) for stage in stages], after)
    warn_of_dead(layers)
    report = report.completed(noise).measured(costs)
    return report.lowered(launched(imported.module), channels)


def warn_of_dead(layers: set[str]) -> None:
    """Say which layers are left out, as nothing reads what they compute."""
    if layers:
        names = ", ".join(sorted(layers))
        warnings.warn(f"left out, for nothing reads what they compute: {names}", stacklevel=4)


def refuse_taken_names(parts: nn.Module | None, imported: Imported) -> None:
    """Raise GqcError if what a compiled model has of its own would overwrite a part of the model.

    A copy of a compiled model has those already.
    """
    if parts is None:
        names = {name.split(".")[0] for name in (*imported.weights, *imported.aliases)}
    else:
        names = () if isinstance(vars(parts).get("compilation"), Compilation) else dir(parts)
    if taken := sorted(set(ATTACHED).intersection(names)):
        raise GqcError(
            f"the model has parts called {', '.join(taken)}, as a compiled model has of its own: "
            "give them other names"
        )


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
