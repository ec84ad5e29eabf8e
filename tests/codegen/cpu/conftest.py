"""Random quantized linears, their kernels for any CPU tier, and what they must compute."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from emulated_tiles import SIGNATURES, Tiles, with_calls
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, TensorType
from xdsl.dialects.test import TestOp
from xdsl.parser import Parser

from gqc.codegen import cpu
from gqc.codegen.cpu import jit
from gqc.codegen.cpu.isa import ISAS, missing
from gqc.dialects import gq, tile
from gqc.formats.block_scaled import BlockScaled
from gqc.formats.layouts import LAYOUTS
from gqc.passes.lower_to_tile import build_matmul
from gqc.passes.split_m_buckets import schedule
from gqc.runtime import ops
from gqc.targets import ANY, TARGETS, Tiling

TORCH_TYPES = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f8E4M3FN": torch.float8_e4m3fn,
}


def parse_type(text: str) -> TensorType:
    context = Context()
    context.load_dialect(Builtin)
    context.load_dialect(gq.Gq)
    type_ = Parser(context, text).parse_type()
    assert isinstance(type_, TensorType)
    return type_


@dataclass
class Linear:
    """y[M, N] = x[M, K] · w[N, K]ᵀ (+ bias), w random in a block-scaled type."""

    n: int
    k: int
    format: str
    activation: str = "f32"
    bias: bool = False

    def __post_init__(self) -> None:
        self.type = parse_type(f"tensor<{self.n}x{self.k}x!gq.block_scaled<{self.format}>>")
        self.element: gq.BlockScaledType = self.type.get_element_type()  # type: ignore[assignment]
        self.generator = torch.Generator().manual_seed(self.n * 31 + self.k)
        self.weight = self.random_weight()

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def random_weight(self) -> BlockScaled:
        """Every finite code occurs, the greatest too; scales have both signs of exponent."""
        format = self.element.format
        finite = [code for code, value in enumerate(format.values) if math.isfinite(value)]
        codes = torch.tensor(finite)[
            torch.randint(0, len(finite), (self.n, self.k), generator=self.generator)
        ]
        if format.is_integer and format.signed:
            codes = codes - (codes >> format.bits - 1 << format.bits)
        codes = codes.to(torch.int8 if format.is_integer and format.signed else torch.uint8)
        shape = self.element.scale_shape((self.n, self.k))
        scale = self.random_scale(shape)
        zero = None
        if self.element.zero_mode.data == "quantized":
            zero = torch.randint(0, 1 << format.bits, shape, generator=self.generator).byte()
        elif self.element.has_zero:
            zero = (4 * self.random(*shape)).to(TORCH_TYPES[str(self.element.zero)])
        whole = torch.tensor(0.3) if self.element.has_tensor_scale else None
        return BlockScaled(self.element, codes, scale, zero, whole)

    def random_scale(self, shape: tuple[int, ...]) -> torch.Tensor:
        if str(self.element.scale) == "f8E8M0FNU":  # 2^-7 to 2^3
            bytes_ = torch.randint(120, 131, shape, generator=self.generator).byte()
            return bytes_.view(torch.float8_e8m0fnu)
        scale = self.random(*shape).abs() + 0.1
        if self.element.format.is_integer:  # of both signs
            scale *= self.random(*shape).sign()
        return scale.to(TORCH_TYPES[str(self.element.scale)])

    def kernel(self, isa: str, rows: int, tiling: Tiling | None = None) -> tile.KernelOp:
        """The kernel that the compiler makes for a tier and a number of rows."""
        target = TARGETS[f"cpu_{isa}"]
        tilings = target.tilings_of(self.element.format.bits, self.activation)
        tiling = tiling or next(t for t in tilings if t.rows in (ANY, *range(rows, 99)))
        layout = gq.LayoutAttr(target.layout, target.lanes)
        activation = TensorType(
            parse_type(f"tensor<1x{self.activation}>").element_type, [-1, self.k]
        )
        result = TensorType(activation.element_type, [-1, self.n])
        types = [activation, *layout.part_types(self.type)]
        bias = TensorType(activation.element_type, [self.n])
        source = TestOp(result_types=[*types, bias])
        unpack = gq.UnpackOp(source.results[1 : len(types)], layout, self.type)
        dense = gq.DcastOp(unpack.weight, TensorType(activation.element_type, [self.n, self.k]))
        matmul = gq.MatmulTOp(
            source.results[0], dense.result, source.results[-1] if self.bias else None, result
        )
        plan = schedule(tiling, target, matmul)
        kernel = build_matmul("matmul", target.name, matmul, unpack, plan)
        kernel.verify()
        return kernel

    def arguments(self, rows: int) -> list[torch.Tensor]:
        """x, the packed weight, bias if there is one, y filled with NaN."""
        dtype = TORCH_TYPES[self.activation]
        x = self.random(rows, self.k).to(dtype)
        parts = LAYOUTS["lane_words"].pack(self.weight, 64)
        bias = [self.random(self.n).to(dtype)] if self.bias else []
        return [x, *parts, *bias, torch.full((rows, self.n), float("nan"), dtype=dtype)]

    def reference(self, arguments: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """y in float64, and the bound of its error by f32 accumulation and output rounding.

        Each product and each sum of K terms may be off by half an ulp; terms are bounded by
        |x|·(|q·s| + |z·s|), for the zero point's share is summed by itself.
        """
        x = arguments[0].double()
        w = self.weight.dequantize(torch.float64)
        y = x @ w.T
        q = torch.tensor(self.element.format.values, dtype=torch.float64)[self.weight.codes.long()]
        s = self.weight.scale.double().repeat_interleave(self.k // self.weight.scale.shape[1], 1)
        if self.weight.tensor_scale is not None:
            s = s * self.weight.tensor_scale.double()
        size = x.abs() @ ((q * s).abs() + (w - q * s).abs()).T
        if self.bias:
            y = y + arguments[-2].double()
            size = size + arguments[-2].double().abs()
        unit = {"f32": 2.0**-24, "bf16": 2.0**-8, "f16": 2.0**-11}[self.activation]
        return y, size * 2.0**-24 * (self.k**0.5 + 8) + y.abs() * unit + 1e-30

    def check(self, isa: str, rows: int, tiling: Tiling | None = None) -> None:
        arguments = self.arguments(rows)
        cpu.load(self.kernel(isa, rows, tiling), isa)(*arguments)
        y, bound = self.reference(arguments)
        excess = ((arguments[-1].double() - y).abs() / bound).max().item()
        assert excess <= 1, f"{excess:.3g} times the bound of rounding"


@pytest.fixture
def linear() -> type[Linear]:
    return Linear


@pytest.fixture(autouse=True)
def own_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Compiled kernels of these tests stay out of the user's cache."""
    folder = tmp_path_factory.getbasetemp() / "gqc"
    monkeypatch.setenv("GQC_CACHE", str(folder))
    yield folder


@pytest.fixture(autouse=True)
def every_test_runs_neon_and_guards_arrays(emulated_arm: None) -> None:
    pass


@pytest.fixture
def emulated_tiles(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Code for `amx` runs here, with functions in place of the instructions of tiles."""
    if missing(ISAS["avx512bf16"]):
        pytest.skip("this CPU lacks what amx code has beside tiles")
    tiles, before = Tiles(), torch.get_num_threads()
    functions = {f"emulated_{name}": tiles.instruction(name) for name in SIGNATURES}
    addresses = {name: ctypes.cast(f, ctypes.c_void_p).value for name, f in functions.items()}  # type: ignore[arg-type]
    symbols, text = {**jit.openmp(), **addresses}, jit.llvm_text
    monkeypatch.setattr(jit, "openmp", lambda: symbols)
    monkeypatch.setattr(jit, "llvm_text", lambda kernel, isa: with_calls(text(kernel, isa)))
    monkeypatch.setattr(jit, "missing", lambda isa: [])
    monkeypatch.setattr(jit, "linked", {})
    monkeypatch.setattr(ops, "LAUNCHES", {})  # later tests load kernels of their own
    monkeypatch.setenv("GQC_CACHE", str(tmp_path))
    torch.set_num_threads(1)  # they share one state
    yield tiles
    torch.set_num_threads(before)
    assert not tiles.faults and not any(tiles.rows), "tiles that are not released"
