"""`gqc.quantize`: the weights of a model, quantized under what calibration inputs tell of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import Progress
from torch import fx, nn

from gqc.errors import GqcError
from gqc.frontend.arguments import calibration_inputs, refuse_model
from gqc.frontend.linears import copy_shared
from gqc.passes.helpers import count
from gqc.progress import bar_of
from gqc.quantization.journal import Journal, fingerprint
from gqc.quantization.layers import Layer, layers_of
from gqc.quantization.observe import observe
from gqc.quantization.part import (
    Installed,
    Result,
    problem_of,
    quantize_layers,
    refuse_weights,
)
from gqc.quantization.quantized import Fact, Quantized, config_of
from gqc.quantization.stream import Part, Stream
from gqc.quantization.transforms import Transforms, groups_for
from gqc.quantizers import Statistics, refuse_specials
from gqc.schemes import SchemeLike, scheme_list


def quantize(
    model: nn.Module,
    *,
    scheme: SchemeLike | Mapping[str, SchemeLike],
    calibration: Iterable[Any] | None = None,
    ignore: Sequence[str] = (),
    lm_head: bool = False,
    seed: int = 0,
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> Quantized:
    """Quantize the weights of a model's linear layers, in memory; the model is not changed.

    scheme, ignore, lm_head: as of `gqc.compile`, which decides the same of each layer. calibration:
    inputs of the model, any number, each as `example_inputs` of `gqc.compile`, read once; for
    schemes that need them (`+awq`, `+gptq`, `+smoothquant`, static scales) or make use of them
    (`+scale_search`). The model's blocks (the longest `nn.ModuleList` of modules with linear
    layers) are quantized one after the other, each under inputs from those before it as they are
    quantized; what is kept for an input is itself and the output of one block. Factors of channels
    are applied where they fold into the parameters before; where they do not, and facts say so, AWQ
    goes without and SmoothQuant's multiply the input as the model runs (`Prescaled` weights). Under
    GPTQ the channels that a layer reads are put into a better order, and with them the rows of the
    layers before, where these can take any order; facts say where. seed: of the sample of inputs
    that errors of quantized inputs are taken on; one seed, one result to the bit. resume: a folder
    that parts are written to as they are done, for the same call to go on from if it was
    interrupted. progress: show a progress bar; None does where standard error is a terminal.
    Weights are quantized on the CPU.

    Raises GqcError that names all layers: on what `gqc.compile` refuses, on schemes that need
    calibration without it or have no use for it, and on a `resume` folder of another run. Warns of
    layers that no input reached: a static scale of theirs becomes dynamic.
    """
    if not isinstance(model, nn.Module) or isinstance(model, fx.GraphModule):
        raise GqcError(f"cannot quantize a {type(model).__name__}: give the nn.Module itself")
    refuse_model(model)
    schemes = scheme_list(scheme, ignore)
    inputs = None if calibration is None else calibration_inputs(calibration)
    copy = copy_shared(model)
    layers = layers_of(copy, schemes, lm_head)
    refuse_meta(copy)
    refuse_specials_in(layers)
    refuse_calibration(layers, inputs)
    run = Run(copy, layers, inputs or [], seed)
    if resume is not None:
        run.journal = Journal(resume, fingerprint(copy, layers, inputs or [], seed))
    with bar_of(progress) as bar:
        return run.all(bar)


def refuse_meta(model: nn.Module) -> None:
    """Raise GqcError on weights that are not loaded."""
    if unloaded := [name for name, tensor in model.state_dict().items() if tensor.is_meta]:
        raise GqcError(
            f"{len(unloaded)} weights are on the meta device, {unloaded[0]} first: load them"
        )


def refuse_specials_in(layers: Sequence[Layer]) -> None:
    """Raise GqcError that names all layers whose weights hold inf or NaN: inputs of others would
    too."""
    problems = []
    for layer in layers:
        try:
            if layer.scheme is not None:
                refuse_specials(layer.matrix())
        except ValueError as error:
            problems.append(problem_of(layer, error))
    refuse_weights(problems)


def refuse_calibration(layers: Sequence[Layer], inputs: Sequence[Any] | None) -> None:
    """Raise GqcError on inputs that are missing, or that no scheme makes use of."""
    needing = [layer.path for layer in layers if layer.scheme and layer.scheme.needs_calibration]
    few = f"{', '.join(needing[:3])}{', …' if len(needing) > 3 else ''}"
    if needing and not inputs:
        given = "no inputs were given" if inputs is None else "the inputs given are none"
        raise GqcError(
            f"{count(len(needing), 'layer')} ({few}) have schemes that need calibration, and "
            f"{given}: give calibration=, inputs of the model"
        )
    using = any(layer.scheme and layer.scheme.uses_calibration for layer in layers)
    if inputs is not None and not using:
        raise GqcError("calibration inputs are given, but no scheme makes use of them")


class Run:
    """One call of `quantize`: a copy of the model, on its way from dense to quantized."""

    def __init__(self, model: nn.Module, layers: list[Layer], inputs: list[Any], seed: int):
        self.model, self.layers, self.seed = model, layers, seed
        self.dense = {each.path: each.module.get_parameter("weight").data for each in layers}
        self.groups = groups_for(model, inputs[0], layers) if inputs else {}
        self.stream = Stream(model, inputs)
        self.journal: Journal | None = None
        self.result = Result()

    def all(self, bar: Progress) -> Quantized:
        """Quantize every part in turn."""
        parts, last = self.stream.parts(), []
        steps = max(1, 2 * len(self.stream.inputs))
        task = bar.add_task("", total=steps * len(parts))
        for i, part in enumerate(parts):
            bar.update(task, description=part.name)
            result = self.done(part, lambda: bar.advance(task))
            self.result.update(result)
            installed = Installed(self.layers, result)
            if not part.is_block:
                last.append(installed)
            elif self.open():
                for _ in self.stream.run(part, keep=True):
                    bar.advance(task)
            if part.is_block:
                installed.remove(self.dense)
            bar.update(task, completed=steps * (i + 1))
        for installed in last:
            installed.remove(self.dense)
        return self.quantized()

    def open(self) -> list[Layer]:
        """Layers that are yet to be quantized."""
        done = {fact.layer for fact in self.result.facts}
        return [each for each in self.layers if each.scheme is not None and each.path not in done]

    def done(self, part: Part, step: Callable[[], None]) -> Result:
        """A part quantized: now, or by an interrupted run."""
        if self.journal is None:
            return self.quantize(part, step)
        result = self.journal.load(part.number + 1)
        if result is None:
            result = self.quantize(part, step)
            self.journal.save(part.number + 1, result)
        for name, tensor in result.dense.items():
            self.model.get_parameter(name).data = tensor
        return result

    def quantize(self, part: Part, step: Callable[[], None]) -> Result:
        """Quantize the layers of a part that are open; before all blocks, those called there."""
        layers = [layer for layer in self.open() if part.holds(layer.path)]
        early = part.number < 0
        using = [each for each in layers if early or (each.scheme and each.scheme.uses_calibration)]
        statistics: dict[str, Statistics] = {}
        if using and self.stream.inputs:
            seed = self.seed + part.number + 1
            statistics = observe(self.stream, part, using, seed, step)
        if early:
            layers = [each for each in layers if statistics[each.path].rows]
        done = self.result.weights
        transforms = Transforms(self.model, part, layers, statistics, done)
        transforms.run(self.groups)
        result = quantize_layers(
            layers, transforms.statistics, transforms.reasons, done, transforms.factors
        )
        ordered = transforms.ordered
        result.facts = [replace(fact, reordered=fact.layer in ordered) for fact in result.facts]
        changed = [name for name in transforms.changed if name not in result.weights]
        result.dense = {name: self.model.get_parameter(name).data for name in changed}
        return result

    def quantized(self) -> Quantized:
        facts = {fact.layer: fact for fact in self.result.facts}
        kept = {
            each.path: Fact(each.path, each.weight, "", reason=each.reason) for each in self.layers
        }
        schemes = {each.weight: each.scheme for each in self.layers}
        activations = {name: s.activation for name, s in schemes.items() if s and s.activation}
        scales = self.result.input_scales
        return Quantized(
            self.model,
            self.result.weights,
            {name: replace(a, static=name in scales) for name, a in activations.items()},
            scales,
            tuple({**kept, **facts}.values()),
            config_of(self.model),
        )
