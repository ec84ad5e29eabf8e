"""gqc's linear layer as `cpu_worker.py` measures it: a compiled one, without its module around."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from cpu_peers import Peer, Run, copies_of
from torch import nn
from xdsl.ir import SSAValue

import gqc
from gqc.checkpoints.weights import dense
from gqc.dialects import gq, tile
from gqc.formats.byte_layouts import sized
from gqc.formats.elements import ELEMENTS
from gqc.runtime.arena import Arena
from gqc.runtime.ops import Launch, launch_of
from gqc.schemes import preset

ACTIVATIONS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
DYNAMIC_INT8 = re.compile(r"w\d+a8_(g\d+|row)")
"""Schemes whose activations are multiplied in int8."""


def peer(scheme: str, activation: str, target: str = "cpu") -> Peer:
    """gqc as a row of the table of peers. Raises GqcError on schemes that it does not know."""
    floats = "16-bit" if activation == "bf16" else "32-bit"
    numerics = "int8" if DYNAMIC_INT8.match(scheme) else floats
    options = {"scheme": scheme, "activation": activation, "target": target}
    bits = ELEMENTS[preset(scheme).element].bits
    return Peer("cpu_gqc:Compiled", numerics, bits, ("gqc", "torch"), options, grouped=False)


@dataclass(frozen=True)
class Step:
    """One launch: which values it reads and writes."""

    launch: Launch
    inputs: tuple[SSAValue, ...]
    parts: tuple[SSAValue, ...]
    outputs: tuple[SSAValue, ...]


class Compiled:
    def __init__(
        self,
        weight: np.ndarray,
        group: int,
        threads: int,
        scheme: str,
        activation: str,
        target: str,
    ):
        torch.set_num_threads(threads)
        self.dtype = ACTIVATIONS[activation]
        n, k = weight.shape
        model = nn.Sequential(nn.Linear(k, n, bias=False))
        model[0].weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)
        quantized = gqc.quantize(model, scheme=scheme, progress=False)
        self.quantized = quantized.read("0.weight")
        x = torch.zeros(2, k, dtype=self.dtype)
        compiled = gqc.compile(
            model.to(self.dtype), x, weights=quantized, target=target, progress=False
        )
        module = compiled.compilation.result
        self.weights: dict[SSAValue, torch.Tensor] = {
            op.result: compiled.get_buffer(op.key)
            for op in module.walk()
            if isinstance(op, gq.WeightOp)
        }
        kernels = {op.sym_name.data: op for op in module.ops if isinstance(op, tile.KernelOp)}
        self.steps = [
            Step(launch_of(op, kernels), tuple(op.inputs), tuple(op.parts), tuple(op.outputs))
            for op in module.walk()
            if isinstance(op, gq.LaunchOp)
        ]
        self.nbytes = sum(part.nbytes for part in self.weights.values())
        self.copies = copies_of(self.nbytes)
        arena = Arena()  # as `gqc.compile` keeps them
        self.sets = [
            {value: arena.keep(part) for value, part in self.weights.items()}
            for _ in range(self.copies)
        ]

    def weight(self) -> np.ndarray:
        return dense(self.quantized, torch.float64).numpy()

    def bind(self, x: np.ndarray) -> Run:
        inputs = torch.from_numpy(x).to(self.dtype)
        values, calls = {self.steps[0].inputs[0]: inputs}, []
        for step in self.steps:
            calls.append(self.bound(step, len(x), values))
        y = values[self.steps[-1].outputs[-1]]

        def run() -> torch.Tensor:
            for i in range(self.copies):
                for launch, copies in calls:
                    launch(*copies[i])
            return y

        return run

    def bound(
        self, step: Step, rows: int, values: dict[SSAValue, torch.Tensor]
    ) -> tuple[Callable[..., None], list[list[torch.Tensor]]]:
        """A launch for that many rows, and its arguments for each copy of the weights."""
        arrays = zip(step.outputs, step.launch.outputs, strict=True)
        for value, (dtype, shape) in arrays:
            values[value] = torch.empty(sized(shape, rows), dtype=dtype)
        before, after = ([values[v] for v in part] for part in (step.inputs, step.outputs))
        arguments = [[*before, *(s[v] for v in step.parts), *after] for s in self.sets]
        return step.launch.launcher(rows), arguments
