"""MXFP4 and MXFP6 weights through gqc.compile: on a CPU, and printed for GPUs."""

from __future__ import annotations

import copy

import pytest
import torch

import gqc
from gqc.schemes import PRESETS


@pytest.mark.parametrize(
    ("scheme", "mode"), [*((scheme, "whole") for scheme in PRESETS), ("w4a16_mxfp4", "layers")]
)
def test_computes_the_dequantized_model(scheme, mode, compiled, inputs, check, all_linears):
    model, result = compiled("mlp", mode, scheme)
    check(result, model, all_linears(model, scheme), inputs["mlp"])
    assert [(row.decision, row.bits) for row in result.report().rows] == [
        ("emulated", {"w4": 4.25, "w6": 6.25}[scheme[:2]])
    ] * 2


@pytest.mark.parametrize(
    ("scheme", "dtype"), zip(PRESETS, (torch.bfloat16, torch.float16, torch.bfloat16), strict=True)
)
def test_half_precision(scheme, dtype, build, inputs, check, all_linears):
    model = build("mlp").to(dtype)
    result = gqc.compile(model, scheme=scheme, target="cpu")
    check(result, model, all_linears(model, scheme), inputs["mlp"], factor=1.5)


def test_survives_copies_files_and_export(compiled, inputs, tmp_path):
    _, result = compiled("mlp", "whole", "w4a16_mxfp4")
    x = inputs["mlp"][0]["x"]
    expected = result(x)
    torch.save(result, tmp_path / "model.pt")
    torch.save(result.state_dict(), tmp_path / "weights.pt")
    torch.export.save(torch.export.export(result, (x,)), tmp_path / "model.pt2")
    other = copy.deepcopy(result)
    for tensor in other.state_dict().values():
        tensor.view(torch.uint8).zero_()
    assert not torch.equal(other(x), expected)
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    exported = torch.export.load(tmp_path / "model.pt2").module()
    for each in (other, loaded, exported):
        assert torch.equal(each(x), expected)


@pytest.mark.parametrize("target", ["sm_90", "gfx950"])
@pytest.mark.parametrize("scheme", PRESETS)
def test_decoded_on_a_gpu(scheme, target, build):
    result = gqc.compile(build("mlp").bfloat16(), scheme=scheme, target=target)
    assert [row.decision for row in result.report().rows] == ["emulated"] * 2
    assert all("tl.dot(" in kernel.source for kernel in result.kernels)
