"""What a compiled model's kernels tell of themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import gqc
from gqc.errors import GqcError


def kernel(target: str) -> Any:
    model = nn.Sequential(nn.Linear(64, 64)).to(torch.bfloat16)
    return gqc.compile(model, scheme="int4_g32", target=target).kernels[0]


def test_a_kernel_for_nvidia():
    built = kernel("sm_90")
    assert ".target sm_90" in built.ptx and f"{built.name}" in built.ptx
    assert built.sass == built.assembly and "HGMMA" in built.sass
    resources = built.resources
    assert 0 < resources.registers <= 255 and resources.spills == 0
    assert 0 < resources.shared <= 227 * 1024
    ((opcode, count),) = resources.matrix_instructions.items()
    assert opcode.startswith("HGMMA") and count == built.sass.count("HGMMA")
    assert "version" not in repr(resources), "no texts"


def test_a_kernel_for_amd():
    built = kernel("gfx942")
    assert "v_mfma" in built.assembly
    assert any(opcode.startswith("v_mfma") for opcode in built.resources.matrix_instructions)
    for name in ("ptx", "sass"):
        with pytest.raises(GqcError, match=f"{built.name} is a kernel for gfx942: see `assembly`"):
            getattr(built, name)


@pytest.mark.parametrize("name", ["artifacts", "ptx", "sass", "resources"])
def test_a_kernel_for_a_cpu(name):
    built = kernel("cpu")
    with pytest.raises(GqcError, match=f"{built.name} is a CPU kernel: see `assembly`"):
        getattr(built, name)
    assert f"{built.name}:" in built.assembly
