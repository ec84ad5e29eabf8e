"""HQQ: errors fall, below torchao's, in every zero mode with float zero points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchao.quantization.quant_primitives import _choose_qparams_and_quantize_affine_hqq

import gqc
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.quantizers import hqq, rtn
from gqc.quantizers.hqq import P
from gqc.schemes import Scheme, parse_scheme

ORIGINAL = Scheme("ui3", 64, zero_mode="original", zero="f16", scale_rule="minmax")
SCHEMES = ("int8_g32", "int4_g64", "int3_g64", "int2_g32", "int1_g16", "int4_row", str(ORIGINAL))


def heavy(rows: int, k: int) -> torch.Tensor:
    """Random weights of which some are far out."""
    generator = torch.Generator().manual_seed(rows + k)
    weight = torch.randn(rows, k, generator=generator)
    return weight * torch.randn(rows, k, generator=generator).mul(0.5).exp()


def losses(quantized: BlockScaled, weight: torch.Tensor, power: float = 2) -> torch.Tensor:
    """Sums of a power of the errors, by block, in float64."""
    error = (quantized.dequantize(torch.float64) - weight.double()).abs().pow(power)
    return quantized.blocked(error).sum((1, 3))


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_block_errs_more_than_rounded_to_nearest(text: str, dtype: torch.dtype) -> None:
    scheme, weight = parse_scheme(text), heavy(48, 256).to(dtype)
    by_rtn = losses(rtn(weight, scheme.type(), "minmax"), weight)
    by_hqq = losses(hqq(weight, scheme.type(), "minmax"), weight)
    assert (by_hqq <= by_rtn * (1 + 1e-5)).all()
    if text not in ("int8_g32", "int4_row"):
        assert by_hqq.sum() < 0.98 * by_rtn.sum()


@pytest.mark.parametrize("size", [0.02, 1.0])
@pytest.mark.parametrize(("bits", "group"), [(8, 64), (4, 64), (4, 128), (3, 64), (2, 32)])
def test_errors_are_below_torchaos(bits: int, group: int, size: float) -> None:
    """In squares, by which blocks choose, and in the objective."""
    weight = heavy(256, 512) * size
    codes, scale, zero, _ = _choose_qparams_and_quantize_affine_hqq(
        weight, nbits=bits, group_size=group, device="cpu", raw_output=True
    )
    scale, zero = (part.float().repeat_interleave(group, 1) for part in (scale, zero))
    error = ((codes.float() - zero) * scale - weight).abs()
    found = hqq(weight, parse_scheme(f"int{bits}_g{group}").type(), "minmax")
    for power in (P, 2):
        assert losses(found, weight, power).sum() < error.pow(power).sum()


def line_by_the_paper(w: np.ndarray, part: float) -> tuple[float, float, float]:
    """Scale, offset and sum of squares of one block in 2 bits, from a part of its range, by the
    formulas as they are written, in float64, with numpy's least-squares line."""
    scale, beta, last = (w.max() - w.min()) / 3 * part, 10.0, np.inf
    offset = np.round(w.min() * part / scale) * scale
    for _ in range(20):
        q = ((w - offset) / scale).round().clip(0, 3)
        e = w - (q * scale + offset)
        if not (e**2).sum() < last * (1 - 1e-4):
            break
        last = (e**2).sum()
        outliers = np.sign(e) * (np.abs(e) - np.abs(e) ** -0.3 / beta).clip(0)
        scale, offset = np.polyfit(q, w - outliers, 1)
        beta *= 1.01
    q = ((w - offset) / scale).round().clip(0, 3)
    return scale, offset, ((w - q * scale - offset) ** 2).sum()


@pytest.mark.parametrize("size", [0.02, 1.0])
def test_scales_and_zero_points_are_those_of_the_formulas(size: float) -> None:
    """With errors that the proximal step leaves in, and without."""
    scheme = Scheme("ui2", 32, "f32", zero_mode="rescale", zero="f32", scale_rule="minmax")
    weight, moved = heavy(16, 32) * size, 0
    for row in weight.split(1):
        before = losses(rtn(row, scheme.type(), "minmax"), row).item()
        lines = [line_by_the_paper(row.double().numpy()[0], part) for part in (1, 0.85)]
        scale, offset, after = min(lines, key=lambda line: line[2])
        found = hqq(row, scheme.type(), "minmax")
        if after < before * (1 - 1e-5):
            moved += 1
            assert found.zero is not None
            assert found.scale.item() == pytest.approx(scale, rel=1e-4)
            assert found.zero.item() == pytest.approx(offset, rel=1e-4, abs=1e-6 * size)
    assert moved > 8


def test_a_compiled_layer_is_hqqs() -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(256, 64), torch.randn(8, 256)
    compiled = gqc.compile(layer, (x,), scheme="int3_g64+hqq")
    weight = hqq(layer.weight, parse_scheme("int3_g64").type(), "minmax").dequantize()
    torch.testing.assert_close(compiled(x), x @ weight.T + layer.bias)


def test_what_has_no_float_zero_point_is_refused() -> None:
    for text in ("int4_g64_sym+hqq", "mxfp4+hqq"):
        with pytest.raises(GqcError, match=r"no quantizer 'hqq' for .*: choose one of "):
            parse_scheme(text)
    integer = Scheme("ui4", 32, zero_mode="quantized", zero="ui4", scale_rule="minmax")
    with pytest.raises(ValueError, match="float zero points"):
        hqq(heavy(2, 32), integer.type(), "minmax")


def test_a_constant_block_and_nan() -> None:
    scheme = parse_scheme("int4_g32")
    found = hqq(torch.full((2, 32), 0.5), scheme.type(), "minmax")
    assert torch.equal(found.dequantize(), torch.full((2, 32), 0.5))
    with pytest.raises(ValueError, match="the weight holds inf or NaN"):
        hqq(torch.full((2, 32), torch.nan), scheme.type(), "minmax")
