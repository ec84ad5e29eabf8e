"""Dots of bytes on every tier that runs here, against float64 on what codes stand for."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from tiers import RUN
from xdsl.dialects.builtin import TensorType
from xdsl.dialects.test import TestOp
from xdsl.parser import Parser

from gqc.codegen import cpu
from gqc.codegen.cpu.isa import ISAS
from gqc.dialects import gq, tile
from gqc.dialects.text import context
from gqc.formats.block_scaled import BlockScaled
from gqc.integer_dots import LANES
from gqc.passes import split_m_buckets
from gqc.passes.helpers import native_row
from gqc.passes.lower_to_tile import build_matmul
from gqc.passes.split_m_buckets import native_schedule
from gqc.targets import ANY, TARGETS

TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
UNIT = {"f32": 2.0**-24, "bf16": 2.0**-8, "f16": 2.0**-11}
X_LAYOUT = gq.LayoutAttr("bytes", scales="summed")
W_LAYOUT = gq.LayoutAttr("lane_quads", LANES)
RUN_AS = {"portable": "avx2"}
"""Tiers that have no such kernels of their own, and whose they run here."""


def parse_type(text: str) -> TensorType:
    type_ = Parser(context(), text).parse_type()
    assert isinstance(type_, TensorType)
    return type_


@dataclass
class Dot:
    """y = x · Wᵀ + bias of random codes, the greatest of both signs among them."""

    n: int
    k: int
    group: int
    weight_format: str
    y: str = "f32"
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(3))

    def __post_init__(self) -> None:
        self.x_type = f"tensor<?x{self.k}x!gq.block_scaled<1x{self.group} : f32 : si8>>"
        w = f"!gq.block_scaled<1x{self.group} : {self.weight_format}>"
        self.w_type = f"tensor<{self.n}x{self.k}x{w}>"
        self.weight = self.random_weight()

    def whole(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.randint(int(low), int(high) + 1, shape, generator=self.generator)

    def random_weight(self) -> BlockScaled:
        type_ = gq.block_scaled(parse_type(self.w_type))
        assert type_ is not None
        format, blocks = type_.format, (self.n, self.k // self.group)
        codes = self.whole(format.minimum, format.maximum, self.n, self.k)
        codes[0], codes[1] = int(format.maximum), int(format.minimum)
        scale = torch.rand(blocks, generator=self.generator) + 0.1
        zero = None
        if type_.mode.integer:
            zero = self.whole(0, format.maximum, *blocks).byte()
        elif type_.has_zero:
            zero = (4 * torch.randn(blocks, generator=self.generator)).to(TYPES[str(type_.zero)])
        dtype = torch.int8 if format.signed else torch.uint8
        return BlockScaled(type_, codes.to(dtype), scale.to(TYPES[str(type_.scale)]), zero)

    def inputs(self, rows: int) -> BlockScaled:
        type_ = gq.block_scaled(parse_type(self.x_type))
        assert type_ is not None
        codes = self.whole(-127, 127, rows, self.k).to(torch.int8)
        codes[0], codes[-1, ::3] = 127, -127  # whose sum is not 0 where these are one row
        scale = (torch.rand(rows, self.k // self.group, generator=self.generator) + 0.1) / 1000
        return BlockScaled(type_, codes, scale)

    def kernel(self, isa: str, rows: int) -> tile.KernelOp:
        """The kernel that the compiler makes for a tier and a number of rows."""
        x, w = parse_type(self.x_type), parse_type(self.w_type)
        y = parse_type(f"tensor<?x{self.n}x{self.y}>")
        bias = TensorType(y.element_type, [self.n])
        parts = X_LAYOUT.part_types(x), W_LAYOUT.part_types(w)
        source = TestOp(result_types=[*parts[0], *parts[1], bias])
        *given, b = source.results
        x_unpack = gq.UnpackOp(given[: len(parts[0])], X_LAYOUT, x)
        unpack = gq.UnpackOp(given[len(parts[0]) :], W_LAYOUT, w)
        matmul = gq.MatmulTOp(x_unpack.weight, unpack.weight, b, y)
        target = TARGETS[f"cpu_{RUN_AS.get(isa, isa)}"]
        tilings = native_row(matmul, target).tilings
        tiling = next(t for t in tilings if rows <= t.rows or t.rows == ANY)
        plan = native_schedule(tiling, target, matmul)
        kernel = build_matmul("matmul", target.name, matmul, unpack, plan)
        kernel.verify()
        return kernel

    def arguments(self, x: BlockScaled) -> list[torch.Tensor]:
        """Parts of x and of the weight, the bias, and y filled with NaN."""
        bias = torch.randn(self.n, generator=self.generator).to(TYPES[self.y])
        return [
            *X_LAYOUT.row.pack(x, 1),
            *W_LAYOUT.row.pack(self.weight, LANES),
            bias,
            torch.full((len(x.codes), self.n), torch.nan, dtype=TYPES[self.y]),
        ]

    def check(self, isa: str, rows: int) -> None:
        """Sums over a group are exact, so only sums of groups are rounded."""
        x = self.inputs(rows)
        *inputs, y = self.arguments(x)
        cpu.load(self.kernel(isa, rows), isa)(*inputs, y)
        exact, w = x.dequantize(torch.float64), self.weight
        bias = inputs[-1].double()
        expected = exact @ w.dequantize(torch.float64).T + bias
        plain = BlockScaled(w.type.with_block([1, self.group]), w.codes, w.scale, w.zero)
        scaled = w.codes.double() * w.scale.double().repeat_interleave(self.group, 1)
        size = (
            exact.abs() @ (scaled.abs() + (plain.dequantize(torch.float64) - scaled).abs()).T
            + bias.abs()
        )
        bound = size * 2.0**-24 * (self.k // self.group + 8) + expected.abs() * UNIT[self.y] * 1.01
        excess = ((y.double() - expected).abs() / bound).max().item()
        assert excess <= 1, f"{excess:.3g} times the bound of rounding"


@pytest.fixture(params=RUN)
def isa(request: pytest.FixtureRequest) -> str:
    return request.param


FORMATS = [
    ("f16 : si4", 32),
    ("f16 : si8", 128),
    ("bf16 : ui8, zero = f16, zero_mode = rescale", 16),
    ("f32 : ui4, zero = ui4, zero_mode = quantized", 64),
    ("f16 : ui4, zero = f32, zero_mode = original", 256),
    ("f16 : si3", 64),
    ("f16 : ui2, zero = ui2, zero_mode = quantized", 32),
    ("f16 : ui1, zero = bf16, zero_mode = rescale", 32),
]


@pytest.mark.parametrize(("weight", "group"), FORMATS)
def test_against_float64(isa: str, weight: str, group: int) -> None:
    """Numbers of rows that fill no tile, of columns that fill no vector, and types take turns."""
    turn = FORMATS.index((weight, group)) + list(ISAS).index(isa)
    dot = Dot((71, 34, 2)[turn % 3], 3 * group, group, weight, [*TYPES][turn // 3 % 3])
    dot.check(isa, (7, 1, 2, 5)[turn % 4])


@pytest.mark.parametrize(("weight", "group"), FORMATS)
def test_tiles_of_amx(emulated_tiles, weight: str, group: int) -> None:
    """Groups of parts of a tile's 64, of one and of several; rows and columns that leave tails."""
    rows = (17, 32, 33, 64, 100, 257)[FORMATS.index((weight, group)) % 6]
    Dot(71, 3 * group, group, weight, "bf16").check("amx", rows)
    tiles = 3 * (-(-group // 64))
    assert emulated_tiles.counts["tdpbsud"] == -(-rows // 32) * 3 * 4 * tiles


def test_parts_of_k(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three programs make a tile, a group each."""
    monkeypatch.setattr(split_m_buckets, "PART_CODES", 1)
    dot = Dot(34, 96, 32, "f16 : ui4, zero = f16, zero_mode = rescale", "bf16")
    assert dot.kernel(isa, 1).parts == 3
    dot.check(isa, 1)


def test_threads_do_not_change_a_bit() -> None:
    dot, before = Dot(700, 512, 32, "f16 : si4"), torch.get_num_threads()
    x = dot.inputs(9)
    run, (*inputs, y) = cpu.load(dot.kernel("portable", 9)), dot.arguments(x)
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            run(*inputs, y.fill_(torch.nan))
            results.append(y.clone())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("isa", "weight", "instruction"),
    [
        ("avx512bf16", "f16 : si4", "vpdpbusd"),
        ("avx512bf16", "f16 : si8", "vpdpbusd"),
        ("avx512vnni", "f16 : si4", "vpdpbusd"),
        ("avx512", "f16 : si4", "vpmaddubsw"),
        ("avxvnni", "f16 : si8", "vpdpbusd"),
        ("avx2", "f16 : si4", "vpmaddubsw"),
        ("avx2", "f16 : si8", "vpmaddwd"),
        ("neon", "f16 : si4", "sdot"),
        ("amx", "f16 : si4", "vpdpbusd"),
        ("neon", "f16 : si8", "sdot"),
    ],
)
def test_the_instruction_is_there(isa: str, weight: str, instruction: str) -> None:
    """And none that would saturate, and nothing is kept on the stack in the loop over groups, but
    where sums take all of 16 registers: what `tests/spills.json` counts."""
    text = cpu.assembly(Dot(64, 256, 32, weight, "bf16").kernel(isa, 4), isa)
    assert f"{instruction}\t" in text
    if instruction == "vpmaddwd":
        assert "vpmaddubsw" not in text
    spills = [line for line in text.splitlines() if "mm" in line and "(%rsp)" in line]
    assert isa in ("avx2", "avxvnni") or not spills
