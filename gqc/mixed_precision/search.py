"""`gqc.search`: a scheme for each layer, by measured sensitivity, under a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx, nn

from gqc.dialects.gq import BlockScaledType
from gqc.errors import GqcError
from gqc.frontend.arguments import calibration_inputs, refuse_model
from gqc.frontend.linears import copy_shared
from gqc.mixed_precision.decode_time import Rates, rates_of
from gqc.mixed_precision.found import Chosen, Found
from gqc.mixed_precision.knapsack import Choice, solve
from gqc.mixed_precision.sensitivity import Candidates, Losses, sensitivities
from gqc.quantization.layers import Layer, layers_of
from gqc.quantization.quantize import bar_of, refuse_meta
from gqc.quantizers import FACTORS
from gqc.schemes import KEEP, SchemeLike, parse_scheme, scheme_list
from gqc.targets import resolve

DEFAULT = ("int2_g32", "int3_g64", "int4_g128", "int4_g64", "int8_g64")
"""3, 3.5, 4.25, 4.5 and 8.5 bits."""

ANY = "int8_row"
"""A scheme that every layer can have, to ask which layers are quantized."""


def search(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    budget_bits: float | None = None,
    budget_us: float | None = None,
    candidates: Sequence[SchemeLike] = DEFAULT,
    target: str = "auto",
    ignore: Sequence[str] = (),
    lm_head: bool = False,
    progress: bool | None = None,
    seed: int = 0,
) -> Found:
    """Choose a scheme for each linear layer, by what it does to the model's outputs.

    What comes back is a map from layers to schemes, for `scheme=` of `gqc.compile` and
    `gqc.quantize`; it prints as a table. calibration: inputs of the model, each as `example_inputs`
    of `gqc.compile`; the model runs about once for each layer, candidate and input. Of each layer
    and candidate that alone is measured (`sensitivity.sensitivities`), and the sum over the layers
    is made the least that the budget allows (`knapsack.solve`): one of

    - budget_bits: mean bits of a weight's element, scales and zero points included.
    - budget_us: predicted microseconds of all these layers for one token (`decode_time.Rates`).

    candidates: schemes, of which a layer may have those whose groups divide its K. Transforms by
    factors (`awq`, `smoothquant`) change other layers too and can be no candidates. target: as of
    `gqc.compile`. ignore, lm_head: as of `gqc.compile`, which decides the same of each layer. seed:
    of what quantizers sample. progress: show a progress bar; None does where standard error is a
    terminal. The model is not changed.

    Raises GqcError on a budget below the least that the candidates allow, and before any work on
    bad candidates and on layers that none fits; each names all layers.
    """
    if not isinstance(model, nn.Module) or isinstance(model, fx.GraphModule):
        raise GqcError(f"cannot search for a {type(model).__name__}: give the nn.Module itself")
    refuse_model(model)
    refuse_budgets(budget_bits, budget_us)
    inputs = calibration_inputs(calibration)
    schemes = texts(candidates)
    machine = resolve(target, model).name
    copy = copy_shared(model)
    layers = layers_of(copy, scheme_list(ANY, ignore), lm_head)
    refuse_meta(copy)
    weights = candidates_of(layers, schemes)
    rates = rates_of(machine)
    costs, budget = costs_of(weights, rates, budget_bits, budget_us)
    if not inputs:
        raise GqcError("the calibration inputs are none: give inputs of the model")
    untie(weights)
    with bar_of(progress) as bar:
        total = len(inputs) * sum(len(each.schemes) for each in weights)
        task = bar.add_task("", total=total)
        losses = sensitivities(
            *(copy, weights, inputs, seed),
            lambda name: bar.update(task, advance=1, description=name),
        )
    refuse_nan(weights, losses)
    rows = [
        [Choice(cost, losses[each.weight, s]) for s, cost in zip(each.schemes, row, strict=True)]
        for each, row in zip(weights, costs, strict=True)
    ]
    picks = solve(rows, budget)
    chosen = {each.weight: each.schemes[i] for each, i in zip(weights, picks, strict=True)}
    return result_of(layers, schemes, chosen, losses, machine, rates)


def refuse_budgets(bits: float | None, us: float | None) -> None:
    """Raise GqcError unless there is one budget, a positive number."""
    given = [budget for budget in (bits, us) if budget is not None]
    if len(given) != 1:
        raise GqcError("give one budget, budget_bits (for example 4.25) or budget_us")
    if not (math.isfinite(given[0]) and given[0] > 0):
        raise GqcError(f"a budget of {given[0]}: give a positive number")


def texts(candidates: Sequence[SchemeLike]) -> tuple[str, ...]:
    """Candidates as texts, each once. Raises GqcError on what can be none."""
    candidates = (candidates,) if isinstance(candidates, str) else candidates
    schemes = tuple(dict.fromkeys(map(str, candidates)))
    if not schemes:
        raise GqcError("no candidates: give schemes, for example int4_g128 and int8_g128")
    if KEEP in schemes:
        raise GqcError("keep is no candidate: leave layers as they are with ignore=")
    for scheme in schemes:
        if factors := [name for name in parse_scheme(scheme).transforms if name in FACTORS]:
            raise GqcError(
                f"{scheme} cannot be a candidate: {factors[0]} changes other layers too; search "
                f"without it, and add +{factors[0]} to the schemes found"
            )
    return schemes


def misfit(scheme: str, k: int) -> str:
    """Why a scheme is none for a weight [N, K]; empty if it is."""
    parts = parse_scheme(scheme), parse_scheme(scheme).activation
    groups = [part.group for part in parts if part is not None and part.group]
    ragged = [group for group in groups if k % group]
    return f"{scheme} does not fit: {ragged[0]} does not divide K" if ragged else ""


def candidates_of(layers: Sequence[Layer], schemes: Sequence[str]) -> list[Candidates]:
    """The weights that are quantized, each with its layers and the schemes that fit it.

    Raises GqcError that names all layers without one, and where no layer is quantized.
    """
    weights: dict[str, list[Layer]] = {}
    for layer in layers:
        if layer.scheme is not None:
            weights.setdefault(layer.weight, []).append(layer)
    if not weights:
        reasons = dict.fromkeys(layer.reason for layer in layers)
        raise GqcError(f"every layer is kept: {'; '.join(reasons)}")
    found = [
        Candidates(
            tuple(group),
            tuple(s for s in schemes if not misfit(s, group[0].matrix().shape[1])),
        )
        for group in weights.values()
    ]
    lines = [
        f"  {layer.path}: weight {list(layer.matrix().shape)}"
        for each in found
        for layer in each.layers
        if not each.schemes
    ]
    if lines:
        raise GqcError(
            f"no candidate's group ({', '.join(schemes)}) divides K (the second dimension) of\n"
            + "\n".join(lines)
            + "\nadd one with a smaller group or `row`, or ignore these layers"
        )
    return found


def costs_of(
    weights: Sequence[Candidates], rates: Rates, bits: float | None, us: float | None
) -> tuple[list[list[int]], int]:
    """Cost of each candidate of each weight, and the budget, as integers: bits or picoseconds.

    Raises GqcError on a budget below the least.
    """

    def cost(type_: BlockScaledType, shape: tuple[int, int], layers: int) -> int:
        if bits is not None:
            return round(math.prod(shape) * type_.bits_per_element(shape))
        return math.ceil(1e6 * rates.microseconds(type_, shape)) * layers

    shapes = [shape_of(each.layers[0]) for each in weights]
    costs = [
        [cost(parse_scheme(s).type(), shape, len(each.layers)) for s in each.schemes]
        for each, shape in zip(weights, shapes, strict=True)
    ]
    given, unit, size = (us, "µs a token", 10**6)
    if bits is not None:
        given, unit, size = bits, "bits a weight", sum(map(math.prod, shapes))
    assert given is not None
    if (least := sum(map(min, costs))) > given * size:
        enough = math.ceil(1e4 * least / size) / 1e4
        raise GqcError(
            f"no choice keeps to {given} {unit}: the least that the candidates allow is "
            f"{enough:.4f}; raise the budget or add a smaller candidate"
        )
    return costs, math.floor(given * size)


def shape_of(layer: Layer) -> tuple[int, int]:
    n, k = layer.matrix().shape
    return n, k


def untie(weights: Sequence[Candidates]) -> None:
    """Give the layers of a weight a parameter that no other module has: an embedding that is tied
    to the head stays as it is where the head is quantized."""
    for each in weights:
        own = nn.Parameter(each.layers[0].module.get_parameter("weight").detach(), False)
        for layer in each.layers:
            layer.module.weight = own


def refuse_nan(weights: Sequence[Candidates], losses: Losses) -> None:
    """Raise GqcError on sensitivities that are no numbers."""
    bad = [
        f"{each.layers[0].path} under {scheme}"
        for each in weights
        for scheme in each.schemes
        if not math.isfinite(losses[each.weight, scheme])
    ]
    if bad:
        raise GqcError(
            f"the model's outputs are zero, or hold inf or NaN, with {bad[0]} "
            f"({len(bad)} such): check the calibration inputs"
        )


def result_of(
    layers: Sequence[Layer],
    schemes: Sequence[str],
    chosen: dict[str, str],
    losses: Losses,
    target: str,
    rates: Rates,
) -> Found:
    """The choice as it is told."""
    rows = []
    for layer in layers:
        shape, scheme = shape_of(layer), chosen.get(layer.weight, "")
        if not scheme:
            rows.append(Chosen(layer.path, layer.weight, shape, "", 0, 0, {}, layer.reason))
            continue
        type_ = parse_scheme(scheme).type()
        costs = type_.bits_per_element(shape), rates.microseconds(type_, shape)
        own = {s: losses[layer.weight, s] for s in schemes if (layer.weight, s) in losses}
        reason = "; ".join(filter(None, (misfit(s, shape[1]) for s in schemes)))
        rows.append(Chosen(layer.path, layer.weight, shape, scheme, *costs, own, reason))
    return Found(rows, target, rates.source)
