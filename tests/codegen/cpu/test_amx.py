"""Tiles of AMX, against float64, by instructions that are emulated; and their code."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from spills import annotated, loops_of
from torch import nn
from torch.nn import functional as F

import gqc
from gqc.codegen import cpu
from gqc.codegen.cpu import isa, jit
from gqc.codegen.cpu.isa import ISAS
from gqc.dialects import tile
from gqc.errors import GqcError
from gqc.passes import panel_matmul_kernel
from gqc.quantizers import QUANTIZERS
from gqc.schemes import parse_scheme

BF16 = "bf16"
ROWS = [17, 32, 33, 64, 100, 257]
FORMATS = {
    "int4_g128": "1x128 : f16 : ui4, zero = f16, zero_mode = rescale",
    "int4_g32": "1x32 : f16 : ui4, zero = f16, zero_mode = original",
    "int3_g64": "1x64 : bf16 : ui3, zero = ui3, zero_mode = quantized",
    "int8_row": "1x? : f16 : si8",
    "mxfp4": "1x32 : f8E8M0FNU : f4E2M1FN",
    "mxfp8": "1x32 : f8E8M0FNU : f8E4M3FN",
    "nvfp4": "1x16 : f8E4M3FN : f4E2M1FN, global = f32",
    "fp8_g128": "1x128 : f32 : f8E4M3FN",
    "iq4_nl": "1x32 : f16 : iq4_nl",
}


@pytest.mark.parametrize("rows", ROWS)
def test_every_number_of_rows(linear, emulated_tiles, rows):
    linear(70, 64, FORMATS["int4_g32"], BF16).check("amx", rows)
    blocks = -(-rows // 32)
    assert emulated_tiles.counts["tdpbf16ps"] == blocks * 4 * (2 * 2) * 2


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(linear, emulated_tiles, name, monkeypatch):
    """Chunks of K that add to sums in memory, several panels, columns and rows that leave tails."""
    monkeypatch.setattr(panel_matmul_kernel, "PANEL_BYTES", 16 << 10)
    rows = ROWS[[*FORMATS].index(name) % 5]
    linear(330, 256, FORMATS[name], BF16, bias=True).check("amx", rows)
    assert emulated_tiles.counts["tdpbf16ps"] == -(-rows // 32) * 4 * (6 * 2) * 8


@pytest.mark.parametrize("name", ["nvfp4", "int4_g16"])
def test_half_tiles_of_k(linear, emulated_tiles, name):
    """Where K is an odd multiple of 16, or a block is no more than that."""
    format = FORMATS.get(name, "1x16 : f16 : si4")
    linear(64, 48, format, BF16).check("amx", 33)
    assert emulated_tiles.counts["tdpbf16ps"] == 2 * 4 * 2 * 3


@pytest.mark.parametrize(
    ("k", "format", "activation"),
    [
        (64, FORMATS["int4_g32"], "f32"),
        (64, FORMATS["nvfp4"], "f16"),
        (100, "1x? : f16 : ui4", BF16),  # a tail of K
        (48, "1x16 : f16 : si3", BF16),
        (64, "1x64 : f32 : nf4", BF16),
        # Steps of two blocks: scales come first, and what they give is not bf16.
        (64, "1x16 : f16 : si1", BF16),
        (64, "1x16 : bf16 : ui3, zero = ui3, zero_mode = quantized", BF16),
        (192, "1x16 : f32 : ui5, zero = f32, zero_mode = original", BF16),
        (64, "1x16 : f16 : si7", BF16),
    ],
)
def test_what_tiles_cannot_multiply(linear, emulated_tiles, k, format, activation):
    linear(64, k, format, activation).check("amx", 37)
    assert not any(emulated_tiles.counts.values())


@pytest.mark.parametrize("rows", [1, 17, 33, 48])
def test_reads_nothing_beyond_x(linear, emulated_tiles, rows):
    """Pages there may not be touched, once behind the arrays and once before them."""
    layer = linear(64, 64, FORMATS["int4_g32"], BF16)
    kernel, arguments = layer.kernel("amx", 99), layer.arguments(rows)
    for _ in ("end", "start"):
        cpu.load(kernel, "amx")(*arguments)
        y, bound = layer.reference(arguments)
        assert ((arguments[-1].double() - y).abs() <= bound).all()
        arguments[-1].fill_(torch.nan)
    assert emulated_tiles.counts["tileloadd64"]


def test_infinite_and_nan_inputs_stay_in_their_row(linear, emulated_tiles):
    layer = linear(64, 64, "1x32 : f16 : si4", BF16)
    x, *parts, y = layer.arguments(35)
    x[1, 5], x[34, 7] = float("nan"), float("inf")
    cpu.load(layer.kernel("amx", 35), "amx")(x, *parts, y)
    rest = [row for row in range(35) if row not in (1, 34)]
    assert y[rest].isfinite().all() and y[1].isnan().all() and not y[34].isfinite().any()


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_few_rows_are_those_of_avx512bf16(linear, rows):
    layer = linear(64, 64, FORMATS["int4_g32"], BF16)
    kernels = [str(layer.kernel(tier, rows)) for tier in ("amx", "avx512bf16")]
    assert kernels[0].replace("cpu_amx", "cpu_avx512bf16") == kernels[1]


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(64, 96, bias=True), nn.Linear(64, 96, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.gate(x)) * self.up(x)


def test_epilogue(emulated_tiles):
    """Bias and SiLU·mul of two layers in one kernel."""
    torch.manual_seed(0)
    model, scheme = Gated().bfloat16().eval(), parse_scheme("int4_g32")
    x = torch.randn(43, 64, dtype=torch.bfloat16)
    compiled = gqc.compile(model, (x,), scheme=scheme, target="cpu_amx")
    exact = []
    for layer in (model.gate, model.up):
        weight = QUANTIZERS[scheme.quantizer](layer.weight.detach(), scheme.type(), "minmax")
        assert layer.bias is not None
        exact.append(F.linear(x.double(), weight.dequantize(torch.float64), layer.bias.double()))
    expected = F.silu(exact[0]) * exact[1]
    excess = (compiled(x).double() - expected).abs() - 2.0**-8 * 1.001 * expected.abs()
    assert emulated_tiles.counts["tdpbf16ps"] == 2 * 4 * (3 * 2) * 2
    assert excess.max() <= 4e-6


@pytest.mark.parametrize("scheme", ["w4a8_g32", "w8a8_g64_asym"])
def test_8_bit_activations_give_the_bits_of_vnni(emulated_tiles, scheme):
    """Sums over a group are exact, and scaled in one order."""
    model = nn.Linear(128, 80).bfloat16().eval()
    x = torch.randn(37, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = "cpu_avx512vnni", "cpu_amx"
    vnni, amx = (gqc.compile(model, (x,), scheme=scheme, target=t)(x) for t in targets)
    assert emulated_tiles.counts["tdpbsud"] and torch.equal(amx, vnni)


# Machines


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that this machine has what some tiers need, and whether it lends tiles."""
    from llvmlite import binding

    def pretend(tiles: bool, *tiers: str) -> None:
        features = {name: True for tier in tiers for name in ISAS[tier].needs}
        monkeypatch.setattr(binding, "get_host_cpu_features", lambda: features)
        monkeypatch.setattr(isa, "may_use_tiles", lambda: tiles)

    return pretend


@pytest.mark.parametrize("tier", ISAS)
def test_the_best_tier_of_a_machine(tier, machine):
    machine(True, tier)
    assert isa.host().name == tier and gqc.targets.resolve("cpu").name == f"cpu_{tier}"


def test_other_tiers_have_no_dots_of_so_many_rows(linear):
    kernel = linear(64, 64, FORMATS["mxfp4"], BF16).kernel("amx", 99)
    with pytest.raises(GqcError, match="a dot of 32 rows is for AMX, which avx512bf16 has not"):
        cpu.emit(kernel, "avx512bf16")


def test_tiles_are_configured_for_one_dot(linear):
    kernel = linear(64, 64, FORMATS["mxfp4"], BF16).kernel("amx", 99)
    (product,) = (op for op in kernel.walk() if isinstance(op, tile.DotOp))
    block = product.parent
    assert block is not None
    block.insert_op_after(product.clone(), product)
    with pytest.raises(GqcError, match="a second dot in a kernel for AMX"):
        cpu.emit(kernel)


def test_tiles_need_leave(linear, machine):
    machine(False, "amx")
    assert isa.host().name == "avx512bf16"
    kernel = linear(64, 64, FORMATS["mxfp4"], BF16).kernel("amx", 99)
    with pytest.raises(GqcError, match="lacks the system's leave to use AMX tiles: it cannot run"):
        jit.load(kernel, ISAS["amx"])


@pytest.mark.parametrize("status", [0, -1])
def test_leave_is_asked_of_linux(monkeypatch, status):
    asked = []
    call: Any = lambda *numbers: asked.append(numbers) or status  # noqa: E731
    library = SimpleNamespace(syscall=SimpleNamespace(__call__=call))
    library.syscall = call
    monkeypatch.setattr(isa.ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(isa.sys, "platform", "linux")
    assert isa.may_use_tiles.__wrapped__() == (status == 0) and asked == [(158, 0x1023, 18)]


# Code


@pytest.mark.parametrize("name", ["int4_g128", "mxfp4", "mxfp8"])
def test_loop_of_tiles(linear, name):
    """Four loads feed four products, with no more beside them than addresses to count up."""
    text = annotated(linear(64, 1024, FORMATS[name], BF16).kernel("amx", 99), "amx")
    assert text.count("ldtilecfg\t") == 3 and text.count("tilerelease") == 1
    loops = [loop for loop in loops_of(text).values() if any("tdpbf16ps" in s for s in loop)]
    for loop in loops:
        words = [line.split()[0] for line in loop if line.startswith("\t")]
        assert words.count("tileloadd") == words.count("tdpbf16ps") == 4 and len(words) <= 20
        assert not any("Spill" in line or "Reload" in line for line in loop)
    assert len(loops) == 2
