"""Translation validation on random models: `python -m fuzz.random_models SEED COUNT` in `tests`.

A model of shared, tied, chained, residual, merged, split, transposed and mixed-dtype layers is
captured and compiled. What each pass leaves is printed, parsed and interpreted, and the kernels
run; every answer is held to the exactly quantized model, computed in float64.
"""

from __future__ import annotations

import copy
import os
import random
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from fuzz.models import CASTS, RandomModel
from torch import Tensor, nn
from xdsl.dialects.builtin import ModuleOp

import gqc
from gqc.dialects import gq
from gqc.dialects.interpret import run
from gqc.dialects.text import parse_ir, print_ir
from gqc.driver.materialize import materialize
from gqc.frontend.capture import capture
from gqc.frontend.export_fx import export_fx
from gqc.frontend.import_fx import import_fx
from gqc.passes.helpers import matmuls, weight_of
from gqc.passes.pipeline import Stage, pipeline, run_stages
from gqc.quantizers import QUANTIZERS, microscaling
from gqc.schemes import Scheme, parse_scheme
from gqc.targets import resolve

SHAPES = ((2, 3), (1, 5), (3, 6), (2, 1), (1, 17))
"""Batch and sequence of the example."""

SCHEMES = {
    # Error beyond torch's own that another rounding of a quantized activation makes.
    "int4_g32": 0.0,
    "int8_g32": 0.0,
    "int3_row": 0.0,
    "int4_g32_sym": 0.0,
    "w4a16_nvfp4": 0.0,
    "w4a16_mxfp4": 0.0,
    "w4a8_g32": 0.004,
    "w8a8_g32_asym": 0.004,
    "mxfp8": 0.02,
    "mxfp4": 0.06,
    "nvfp4": 0.06,
}
UNITS = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative error of the outputs that rounding alone makes in a dtype."""
MOVES = 8
"""Inputs beside one, off by rounding, that tell how far its outputs may move."""


class Reference(RandomModel):
    """The exactly quantized model: weights are what codes stand for, and inputs too."""

    inputs: Mapping[str, Scheme]
    """How the inputs of layers are quantized, by layer."""
    noise: Callable[[Tensor], Tensor] | None = None
    """What moves inputs before they are quantized, as rounding does."""
    whole: bool
    """Captured whole: a model compiled by layers gives a function the decoded weight alone."""

    def given(self, name: str, x: Tensor, function: bool = False) -> Tensor:
        if name not in self.inputs or (function and not self.whole):
            return x
        x = x if self.noise is None else self.noise(x)
        scheme = self.inputs[name]
        rows = x.float().reshape(-1, x.shape[-1])
        rounded = microscaling(rows, scheme.type(), scheme.scale_rule, None).dequantize()
        return rounded.reshape(x.shape).to(x.dtype)


def reference(model: RandomModel, scheme: Scheme, quantized: set[str], whole: bool) -> Reference:
    """The exactly quantized model in the model's dtypes, with weights of float32.

    quantized: names of the weights that are. whole: it is captured whole.
    """
    found: Any = copy.deepcopy(model)
    found.__class__ = Reference
    found.whole = whole
    layers = [n for n, each in model.layers.items() if key_of(model, each.weight) in quantized]
    done: dict[int, nn.Parameter] = {}
    for name in layers:
        layer = found.layers[name]
        if id(layer.weight) not in done:
            weight = layer.weight.detach().float()
            exact = QUANTIZERS[scheme.quantizer](weight, scheme.type(), scheme.scale_rule)
            done[id(layer.weight)] = nn.Parameter(exact.dequantize())
        layer.weight = done[id(layer.weight)]
    found.inputs = dict.fromkeys(layers, scheme.activation) if scheme.activation else {}
    return found


def key_of(model: nn.Module, weight: Tensor) -> str:
    """The first name of a parameter."""
    return next(n for n, p in model.named_parameters(remove_duplicate=False) if p is weight)


def error_of(found: Tensor, exact: Tensor) -> float:
    """Relative error, in the norm."""
    norm, error = exact.double().norm(), (found.double() - exact.double()).norm()
    return (error / norm).item() if norm > 0 else error.item()


@dataclass
class Case:
    """One random model and what is known of it."""

    seed: int
    model: RandomModel
    scheme: str
    x: Tensor
    whole: bool
    answers: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    quantized: set[str] = field(default_factory=set)

    @staticmethod
    def of(seed: int) -> Case:
        r = random.Random(seed)
        torch.manual_seed(seed)
        dtype = r.choice([torch.float32] * 3 + [torch.bfloat16, torch.float16])
        model = RandomModel(r, dtype).eval()
        shape = (*r.choice(SHAPES), model.width)
        x = torch.randn(shape).to(dtype)
        return Case(seed, model, [*SCHEMES][seed % len(SCHEMES)], x, r.random() < 0.85)

    def __str__(self) -> str:
        shape, dtype = tuple(self.x.shape), str(self.x.dtype)[6:]
        return f"seed {self.seed}: {self.scheme} {dtype} {shape} {self.model.steps}"

    def check(self) -> str | None:
        """What is wrong, if anything is."""
        compiled = self.lowered() if self.whole else self.by_layers()
        self.answers["kernels run"] = outputs(compiled(self.x))
        for name, exact, torchs, answer in self.compared(self.x, self.answers):
            if (fault := self.fault(self.x, answer, exact, torchs)) is not None:
                return f"after {name}: {fault}"
        if min(self.x.shape[:2]) == 1 and self.whole:
            return None  # a dimension of 1 is fixed
        x = torch.randn(3, 7, self.model.width).to(self.x.dtype)
        for _, exact, torchs, answer in self.compared(x, {"": outputs(compiled(x))}):
            if (fault := self.fault(x, answer, exact, torchs)) is not None:
                return f"on 21 rows: {fault}"
        return None

    def lowered(self) -> nn.Module:
        """The model captured and compiled whole, and the answer of what each pass leaves."""
        imported = import_fx(capture(self.model, (self.x,)))
        target = resolve("cpu").name
        stages = [self.prepared(stage) for stage in pipeline((f"*={self.scheme}",), target)]
        ends = {stage.name for stage in stages[1:]}
        seen: dict[str, str] = {}

        def after(name: str, module: ModuleOp) -> None:
            if name == "quantize-weights":
                self.quantized = {
                    found.key
                    for matmul in matmuls(module)
                    if gq.block_scaled(matmul.weight) and (found := weight_of(matmul.weight))
                }
            if name in ends:
                return
            text = print_ir(module)
            if (same := seen.setdefault(text, name)) != name:  # the pass had nothing to do
                self.answers[name] = self.answers[same]
                return
            self.answers[name] = run(parse_ir(text), imported.weights, (self.x,))

        run_stages(imported.module, stages, after)
        materialize(imported.module, imported.weights)
        return export_fx(imported)

    def prepared(self, stage: Stage) -> Stage:
        """A stage as it is run: tests change it."""
        return stage

    def by_layers(self) -> nn.Module:
        """The model with its layers compiled one by one."""
        compiled = gqc.compile(self.model, scheme=self.scheme, target="cpu", progress=False)
        rows = compiled.report().rows
        self.quantized = {row.weight for row in rows if row.decision != "kept"}
        return compiled

    def compared(
        self, x: Tensor, answers: Mapping[str, tuple[Tensor, ...]]
    ) -> Iterator[tuple[str, tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """Each answer, with the exact one in float64 and torch's in the model's own dtypes."""
        dense, ours = self.reference(set()), self.reference(self.quantized)
        exact = {False: copy.deepcopy(dense).double()(x.double())}
        exact[True] = copy.deepcopy(ours).double()(x.double())
        torchs = {False: dense(x), True: in_dtypes(ours, self.model)(x)}
        before = ("imported", "dce", "recognize-linears", "adopt-weights")
        weights = ("quantize-weights", "fold-channels")
        for name, answer in answers.items():
            if name in weights and ours.inputs:
                continue  # inputs are not yet quantized: there is no such reference
            yield name, exact[name not in before], torchs[name not in before], answer

    def reference(self, quantized: set[str]) -> Reference:
        """The model with some weights exactly quantized."""
        return reference(self.model, parse_scheme(self.scheme), quantized, self.whole)

    @property
    def unit(self) -> float:
        """Relative error that rounding alone makes in the model's lowest dtype."""
        lows = [*self.model.mixed.values()]
        lows += [
            CASTS[s.option] for s in self.model.steps if s.kind == "cast" and s.option != "f64"
        ]
        return max(UNITS[dtype] for dtype in (self.x.dtype, *lows))

    def spread(self, x: Tensor) -> list[float]:
        """How far each output moves, at most, where inputs of layers move by rounding: a quantized
        activation next to a tie, or a scale next to a power of two, takes another value, and what
        follows multiplies that."""
        exact = self.reference(self.quantized).double()
        at, moved = exact(x.double()), []
        for seed in range(MOVES):
            exact.noise = rounding(self.unit, seed)
            moved.append(exact(x.double()))
        return [
            max(map(error_of, each, [right] * MOVES))
            for right, *each in zip(at, *moved, strict=True)
        ]

    def fault(
        self,
        x: Tensor,
        found: tuple[Tensor, ...],
        exact: tuple[Tensor, ...],
        torchs: tuple[Tensor, ...],
    ) -> str | None:
        """What is wrong with an answer for x, given the exact one and torch's."""
        unit = self.unit
        if len(found) != len(exact):
            return f"{len(found)} results, not {len(exact)}"
        for i, (ours, right, other) in enumerate(zip(found, exact, torchs, strict=True)):
            if ours.shape != other.shape or ours.dtype != other.dtype:
                return f"result {i} is {ours.dtype} {ours.shape}, not {other.dtype} {other.shape}"
            if not right.isfinite().all():
                continue
            error, torch_error = error_of(ours, right), error_of(other, right)
            limit = max(4 * torch_error, SCHEMES[self.scheme], 3 * unit)
            if SCHEMES[self.scheme] and not error <= limit:
                limit = max(limit, 2 * self.spread(x)[i])
            if not error <= limit:
                return f"result {i} errs by {error:.3g}, beyond {limit:.3g}"
        return None


def in_dtypes(found: Reference, model: RandomModel) -> Reference:
    """A reference with its weights rounded to the model's dtypes."""
    for name, layer in found.layers.items():
        layer.to(model.layers[name].weight.dtype)
    return found


def rounding(unit: float, seed: int) -> Callable[[Tensor], Tensor]:
    """Noise as large as rounding's: relative to an element, and to its row for what cancels."""
    generator = torch.Generator().manual_seed(seed)

    def move(x: Tensor) -> Tensor:
        size = x.abs() + x.square().mean(-1, keepdim=True).sqrt()
        return x + unit * size * torch.randn(x.shape, generator=generator).to(x.dtype)

    return move


def outputs(found: Any) -> tuple[Tensor, ...]:
    return tuple(found) if isinstance(found, tuple | list) else (found,)


def attempt(seed: int) -> str | None:
    """Check the model of a seed: what is wrong, if anything is."""
    case = Case.of(seed)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        case.model(case.x)  # torch must take it
        try:
            fault = case.check()
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            fault = f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
    return None if fault is None else f"{case}\n  {fault}"


def main(seed: int, count: int) -> int:
    """Check models, print the faults, and return how many there are."""
    faults = Counter[bool]()
    for each in range(seed, seed + count):
        fault = attempt(each)
        faults[fault is not None] += 1
        if fault is not None:
            print(fault, flush=True)
    print(f"{count} random models, {faults[True]} faults")
    return faults[True]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(*map(int, sys.argv[1:3])) > 0)
