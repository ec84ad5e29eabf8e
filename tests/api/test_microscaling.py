"""MX and NVFP4 through gqc.compile: weights, and activations too."""

from __future__ import annotations

import copy

import pytest
import torch

import gqc
from gqc.schemes import PRESETS, ROUNDINGS

OTHERS = tuple(filter(None, ROUNDINGS))
SCHEMES = [name for name in PRESETS if "a16_" in name and not name.endswith((*OTHERS, "_g128"))]


@pytest.mark.parametrize(
    ("scheme", "mode"),
    [
        *((scheme, "whole") for scheme in SCHEMES),
        ("w4a16_mxfp4", "layers"),
        ("w8a16_mxfp8_rceil", "whole"),
    ],
)
def test_computes_the_dequantized_model(scheme, mode, compiled, inputs, check, all_linears):
    model, result = compiled("mlp", mode, scheme)
    check(result, model, all_linears(model, scheme), inputs["mlp"])
    type_ = PRESETS[scheme].type()
    for row in result.report().rows:
        assert (row.decision, row.bits) == ("emulated", type_.bits_per_element(row.shape))


@pytest.mark.parametrize(
    ("scheme", "dtype"), zip(SCHEMES, 4 * (torch.bfloat16, torch.float16), strict=False)
)
def test_half_precision(scheme, dtype, build, inputs, check, all_linears):
    model = build("mlp").to(dtype)
    result = gqc.compile(model, scheme=scheme, target="cpu")
    check(result, model, all_linears(model, scheme), inputs["mlp"], factor=1.5)


@pytest.mark.parametrize("scheme", ["w4a16_mxfp4", "w4a16_nvfp4"])
def test_survives_copies_files_and_export(compiled, inputs, tmp_path, scheme):
    _, result = compiled("mlp", "whole", scheme)
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
@pytest.mark.parametrize("scheme", SCHEMES)
def test_decoded_on_a_gpu(scheme, target, build):
    result = gqc.compile(build("mlp").bfloat16(), scheme=scheme, target=target)
    assert [row.decision for row in result.report().rows] == ["emulated"] * 2
    assert all("tl.dot(" in kernel.source for kernel in result.kernels)
