"""CPUs of ARM: which tier they have, and what code for it is; and the emulator that runs it."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import emulated_arm
import pytest
from llvmlite import binding
from unicorn.unicorn import UcError

from gqc.codegen import cpu
from gqc.codegen.cpu import isa, jit
from gqc.codegen.cpu.isa import ISAS

INT4 = "1x32 : f16 : ui4, zero = f16, zero_mode = rescale"
LINUX = {"neon": True, "fp-armv8": True, "crc": True, "lse": True, "sve": True}
"""What LLVM 22 finds of a Neoverse V1."""


@pytest.fixture
def neoverse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that this machine is one, and compile for it."""
    jit.target_machine(ISAS["neon"], "aarch64")  # LLVM's part for ARM
    monkeypatch.setattr(isa, "has_dot_products", lambda: True)
    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: LINUX)
    monkeypatch.setattr(binding, "get_host_cpu_name", lambda: "neoverse-v1")
    monkeypatch.setattr(binding, "get_process_triple", lambda: jit.CROSS["aarch64"])
    monkeypatch.setattr(jit, "target_machine", jit.target_machine.__wrapped__)


def test_the_tier(neoverse, monkeypatch):
    assert isa.host() is ISAS["neon"]
    monkeypatch.setattr(isa, "has_dot_products", lambda: False)
    assert isa.host() is ISAS["portable"]


@pytest.mark.parametrize("tier", ["neon", "portable"])
def test_no_tier_has_vectors_of_sve(linear, neoverse, tier):
    """Nor bf16's instructions, which the CPU has too."""
    text = cpu.assembly(linear(100, 128, INT4, "bf16", bias=True).kernel(tier, 4), tier)
    assert re.search(r"\bv\d+\.4s\b", text)
    assert not re.search(r"\b[zp]\d+[./]|\bbf(cvt|dot|mlal|mmla)", text)


@pytest.mark.parametrize(("word", "known"), [(0x3FFFFF, True), (0x3FFFFF & ~(1 << 20), False)])
def test_dot_products_are_asked_of_linux(monkeypatch, word, known):
    asked = []
    call: Any = lambda number: asked.append(number) or word  # noqa: E731
    monkeypatch.setattr(isa.ctypes, "CDLL", lambda _: SimpleNamespace(getauxval=call))
    monkeypatch.setattr(isa.sys, "platform", "linux")
    monkeypatch.setattr(isa.platform, "machine", lambda: "aarch64")
    assert isa.has_dot_products() == known and asked == [16]
    assert isa.host_features().get("dotprod", False) == known
    monkeypatch.setattr(isa.platform, "machine", lambda: "x86_64")
    assert not isa.has_dot_products()


@pytest.mark.parametrize("array", range(1, 5))
def test_the_emulator_sees_what_lies_beyond_an_array(linear, array):
    """But for x, which says how many rows there are."""
    layer = linear(64, 64, INT4)
    arguments = layer.arguments(3)
    run = emulated_arm.load(layer.kernel("neon", 3), ISAS["neon"])
    run(*arguments)
    assert not arguments[-1].isnan().any()
    short = arguments[array].flatten()[:-1]
    with pytest.raises(UcError):
        run(*arguments[:array], short, *arguments[array + 1 :])
