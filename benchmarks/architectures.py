"""What works of each architecture: a small random model, compiled and used in several ways.

    python benchmarks/architectures.py [NAME …]

writes `results/architectures.json`, keeping the rows of other names, and `docs/models.md`. A model
runs in a process of its own. What is compared with is the torch model with the weights that
`gqc.quantize` gives, decoded.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small_architectures import ARCHITECTURES, Architecture
from torch import nn

import gqc
from gqc.checkpoints.weights import dense
from gqc.frontend.linears import copy_shared

RESULTS = Path(__file__).parent / "results" / "architectures.json"
DOCS = Path(__file__).parents[1] / "docs" / "models.md"
SCHEME = "int8_g16"
EXAMPLE, OTHER = (2, 10), (3, 13)
"""Batch and length that a model is captured with, and those that it is run with."""
TOLERANCE = 1e-3
"""Of the greatest output; what rounding in another order gives is far below."""
SECONDS = 1200
WORKS, TORCH, FIXED = "yes", "torch fails", "at the captured sizes"


class Trial:
    """An architecture's model, compiled by layers, and the torch model of the same weights."""

    def __init__(self, architecture: Architecture):
        self.architecture = architecture
        self.dense = architecture.build()
        self.reference = quantized_reference(self.dense)

    def layers(self) -> Any:
        return gqc.compile(self.dense, scheme=SCHEME, target="cpu")

    def by_layers(self) -> None:
        """Compiled layer by layer, the model gives the right outputs."""
        same(self.run(self.layers()), self.run(self.reference))

    def whole(self) -> None:
        """So it does captured whole, at other sizes, and the same layers are quantized. Raises
        FixedSizes where it does at the captured sizes alone."""
        shapes = self.architecture.dynamic_shapes
        example = self.architecture.inputs(*EXAMPLE)
        options: Any = {"scheme": SCHEME, "target": "cpu", "dynamic_shapes": shapes}
        compiled = gqc.compile(self.dense, example, **options)
        if differing := treated_otherwise(self.layers(), compiled):
            raise AssertionError(f"treated otherwise than by layers: {', '.join(differing)}")
        try:
            found = self.run(compiled)
        except gqc.GqcError as error:
            if "captured again with dynamic_shapes" not in str(error):
                raise
            same(self.run(compiled, EXAMPLE), self.run(self.reference, EXAMPLE))
            raise FixedSizes from error
        same(found, self.run(self.reference))

    def generate(self) -> None:
        """The model generates the right tokens."""
        options = {"max_new_tokens": 6, "do_sample": False}
        inputs = self.architecture.inputs(*OTHER)
        inputs.pop("decoder_input_ids", None)
        models: list[Any] = [self.layers(), self.reference]
        found, expected = (model.generate(**inputs, **options) for model in models)
        if not torch.equal(found, expected):
            raise AssertionError("other tokens")

    def export(self) -> None:
        """The model compiled by layers goes through torch.export."""
        inputs = self.architecture.inputs(*EXAMPLE)
        if hasattr(getattr(self.dense, "config", None), "use_cache"):
            inputs["use_cache"] = False  # torch.export takes no cache for an output
        self.transformed(lambda model: exported(model, inputs))

    def fullgraph(self) -> None:
        """It goes through torch.compile as one graph."""
        self.transformed(lambda model: torch.compile(model, fullgraph=True, backend="aot_eager"))

    def transformed(self, transform: Callable[[nn.Module], Any]) -> None:
        """A transformed model gives the right outputs. Raises TorchError where the torch model
        cannot be transformed either."""
        expected = self.run(self.reference, EXAMPLE)
        try:
            found = self.run(transform(self.layers()), EXAMPLE)
        except Exception:
            torch.compiler.reset()
            try:
                self.run(transform(copy.deepcopy(self.dense)), EXAMPLE)
            except Exception as error:
                raise TorchError(str(error)) from error
            raise
        same(found, expected)

    def bf16(self) -> None:
        """In bfloat16 it is as near to float32's outputs as the torch model is, about."""
        expected = self.run(self.reference)
        model = copy.deepcopy(self.dense).bfloat16()
        compiled = gqc.compile(model, scheme=SCHEME, target="cpu")
        errors = [
            max(distance(a.float(), b) for a, b in zip(run, expected, strict=True))
            for run in (
                self.run(compiled, half=True),
                self.run(quantized_reference(model), half=True),
            )
        ]
        if errors[0] > 2 * errors[1] + 0.02:
            raise AssertionError(f"off by {errors[0]:.3f}, torch by {errors[1]:.3f}")

    def run(self, model: Any, sizes: tuple[int, int] = OTHER, half: bool = False) -> list[Any]:
        """The tensors that a model gives."""
        inputs = self.architecture.inputs(*sizes)
        if half:
            inputs = {name: lower(value) for name, value in inputs.items()}
        with torch.no_grad():
            return tensors_of(model(**inputs))


class TorchError(Exception):
    """The torch model fails too."""


class FixedSizes(Exception):
    """torch.export fixes sizes that the model's Python code depends on."""


COLUMNS: dict[str, Callable[[Trial], None]] = {
    "by layers": Trial.by_layers,
    "whole": Trial.whole,
    "generate": Trial.generate,
    "export": Trial.export,
    "fullgraph": Trial.fullgraph,
    "bf16": Trial.bf16,
}


def exported(model: nn.Module, inputs: dict[str, Any]) -> Callable[..., Any]:
    """The exported model, as a function of the inputs without `use_cache`."""
    module = torch.export.export(model, (), inputs, strict=False).module()
    return lambda **given: module(**{name: given.get(name, inputs[name]) for name in inputs})


def lower(value: Any) -> Any:
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.bfloat16() if is_float else value


def tensors_of(output: Any) -> list[torch.Tensor]:
    """The floating tensors of an output, in order, but for caches."""
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if hasattr(output, "values") else output
    return [v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The greatest difference, of the greatest element."""
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-9)).item()


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Raise AssertionError on other outputs."""
    for a, b in zip(found, expected, strict=True):
        if (off := distance(a, b)) > TOLERANCE:
            raise AssertionError(f"outputs are off by {off:.2g}")


def quantized_reference(model: nn.Module) -> nn.Module:
    """The torch model with decoded weights in its linear layers."""
    quantized = gqc.quantize(model, scheme=SCHEME, progress=False)
    copied = copy_shared(model)
    for fact in quantized.facts:
        if fact.scheme:
            layer = copied.get_submodule(fact.layer)
            dtype = layer.get_parameter("weight").dtype
            values = dense(quantized.weights[fact.weight]).to(dtype)
            layer.weight = nn.Parameter(values, requires_grad=False)
    return copied


def treated_otherwise(layers: Any, whole: Any) -> list[str]:
    """Weights that are quantized in one way and kept in the other, of those that both have."""
    ways = [{r.weight: r.decision == "kept" for r in m.report().rows} for m in (layers, whole)]
    return sorted(
        name for name in ways[0].keys() & ways[1].keys() if ways[0][name] != ways[1][name]
    )


def row_of(name: str) -> dict[str, str]:
    """What becomes of an architecture in each column: `yes`, or why not."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trial, row = Trial(ARCHITECTURES[name]), {}
    for column, attempt in COLUMNS.items():
        if column == "generate" and not trial.architecture.generates:
            continue
        try:
            attempt(trial)
            row[column] = WORKS
        except TorchError:
            row[column] = TORCH
        except FixedSizes:
            row[column] = FIXED
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            row[column] = f"{type(error).__name__}: {first[:160]}"
    return row


def in_process(name: str) -> dict[str, str]:
    """`row_of` in a process of its own."""
    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return dict.fromkeys(COLUMNS, "the process died or took too long")


def page(rows: dict[str, dict[str, str]]) -> str:
    """The table as Markdown, with what fails below it."""
    lines = [
        "# Architectures",
        "",
        "Small random models, made by `benchmarks/architectures.py`. `by layers` is compiled",
        "without example inputs, `whole` with them, and run at another batch and length; both are",
        "compared with the torch model of the same quantized weights, decoded. `generate`,",
        "`export` (`torch.export`) and `fullgraph` (`torch.compile(fullgraph=True)`) are of the",
        "model compiled by layers, and so is `bf16`. — does not apply; *torch* means that the",
        "dense model fails too, *sizes* that it works at the captured sizes, which torch.export",
        "fixes as the model's Python code depends on them (a warning says so). Images and the",
        "features that whisper reads keep their size; whisper's `generate` was not tried; flux",
        "needs diffusers.",
        "",
        f"| | {' | '.join(COLUMNS)} |",
        f"|---|{'---|' * len(COLUMNS)}",
    ]
    failures: list[str] = []
    marks = {WORKS: "✓", TORCH: "*torch*", FIXED: "*sizes*"}
    for name in sorted(rows):
        cells = []
        for column in COLUMNS:
            found = rows[name].get(column)
            if found is not None and found not in marks:
                failures.append(f"- {name}, {column}: {found}")
                cells.append(f"✗ {len(failures)}")
            else:
                cells.append("—" if found is None else marks[found])
        lines.append(f"| {name} | {' | '.join(cells)} |")
    numbered = [f"{i}. {text.removeprefix('- ')}" for i, text in enumerate(failures, 1)]
    return "\n".join([*lines, *([""] if numbered else []), *numbered]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(ARCHITECTURES))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(row_of(options.one)))
        return
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.names or ARCHITECTURES:
        package = ARCHITECTURES[name].package
        if package and importlib.util.find_spec(package) is None:
            print(f"{name}: needs {package}, which is not installed")
            continue
        rows[name] = in_process(name)
        print(name, rows[name], flush=True)
        RESULTS.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
        DOCS.parent.mkdir(exist_ok=True)
        DOCS.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
