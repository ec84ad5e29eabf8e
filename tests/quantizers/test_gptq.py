"""GPTQ: the codes of the paper's algorithm as it is written, and outputs that err less."""

from __future__ import annotations

import pytest
import torch
from quantizers.inputs import correlated, heavy, output_error, statistics_of

from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled, per_block
from gqc.quantizers import QUANTIZERS, Statistics, gptq, scale_search
from gqc.quantizers.gptq import DAMPING, inverse_factor
from gqc.schemes import Scheme, parse_scheme

INTEGER = Scheme("ui4", 32, zero_mode="quantized", zero="ui4", scale_rule="minmax")
ORIGINAL = Scheme("ui3", 32, zero_mode="original", zero="f16", scale_rule="minmax")
SCHEMES = (
    "int4_g32",
    "int3_g64_sym",
    "int2_row",
    str(INTEGER),
    str(ORIGINAL),
    "w4a16_mxfp4",
    "w6a16_mxfp6",
    "w8a16_mxint8",
    "w4a16_nvfp4",
    "w4a16_nf4",
)


def values_of(q: BlockScaled) -> torch.Tensor:
    """Every value that an element may have under its scale, [N, K, codes], in float64."""
    element = q.type.format
    codes = torch.tensor(sorted({v for v in element.values if v >= -element.maximum or v == -8}))
    if element.is_integer and str(q.type.scale) != "f8E8M0FNU":
        codes = torch.arange(element.minimum, element.maximum + 1)
    elif element.is_integer:
        codes = torch.arange(-element.maximum, element.maximum + 1)
    size = q.codes.shape[1] // q.scale.shape[1]

    def spread(part: torch.Tensor) -> torch.Tensor:
        return part.double().repeat_interleave(size, 1).unsqueeze(2)

    scale = spread(q.scale.float())
    scale = scale if q.tensor_scale is None else scale * q.tensor_scale.double()
    zero = None if q.zero is None else spread(q.zero)
    return q.type.mode.dequantize(codes.double(), scale, zero)


def textbook(weight: torch.Tensor, gram: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The weight that optimal brain quantization gives, column by column, in float64."""
    gram, weight = gram.double(), weight.double().clone()
    gram = gram + torch.eye(len(gram)) * DAMPING[0] * gram.diagonal().mean()
    inverse, result = torch.linalg.inv(gram), torch.zeros_like(weight)
    for i in gram.diagonal().argsort(descending=True, stable=True).tolist():
        nearest = (values[:, i] - weight[:, i : i + 1]).abs().argmin(1, keepdim=True)
        result[:, i] = values[:, i].gather(1, nearest).squeeze(1)
        error = (weight[:, i] - result[:, i]) / inverse[i, i]
        weight -= error.outer(inverse[i])
        inverse -= inverse[:, i].outer(inverse[i]) / inverse[i, i]
    return result


@pytest.mark.parametrize("text", [text for text in SCHEMES if "mxint8" not in text])
def test_codes_are_those_of_the_textbook(text: str) -> None:
    """Over several blocks of columns, with scales of one group met in many of them.

    Steps of 8 bits are so small that float32 tips some of so many columns.
    """
    scheme, weight = parse_scheme(text), heavy(16, 192)
    statistics = statistics_of(correlated(1000, 192))
    found = gptq(weight, scheme.type(), scheme.scale_rule, statistics=statistics)
    expected = textbook(weight, statistics.gram, values_of(found))
    torch.testing.assert_close(found.dequantize().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", SCHEMES)
def test_outputs_err_less_than_rounded_to_nearest(text: str) -> None:
    scheme, weight, x = parse_scheme(text), heavy(48, 128), correlated(2000, 128)
    type_, rule = scheme.type(), scheme.scale_rule
    by_rule = QUANTIZERS[scheme.quantizer](weight, type_, rule).dequantize()
    found = gptq(weight, type_, rule, statistics=statistics_of(x)).dequantize()
    assert output_error(found, weight, x) < 0.6 * output_error(by_rule, weight, x)


def test_a_given_tensor_scale_is_kept() -> None:
    scheme, statistics = parse_scheme("w4a16_nvfp4"), statistics_of(correlated(500, 64))
    given = torch.tensor(0.01)
    found = gptq(heavy(8, 64), scheme.type(), "amax", given, statistics)
    assert found.tensor_scale is not None and found.tensor_scale.item() == given.item()


def test_columns_that_no_input_reaches_are_rounded_to_nearest() -> None:
    scheme, weight, x = parse_scheme("int4_g32"), heavy(16, 64), correlated(500, 64)
    x[:, 5:9] = 0
    found = gptq(weight, scheme.type(), "minmax", statistics=statistics_of(x))
    assert found.zero is not None
    scale, zero = per_block(found.scale).float(), per_block(found.zero).float()
    error = found.dequantize() - weight
    inside = (found.codes > 0) & (found.codes < 15)
    steps = scale.expand(16, 1, 2, 32).reshape(16, 64)
    dead = torch.zeros(64, dtype=torch.bool)
    dead[5:9] = True
    assert (error.abs() <= 0.5001 * steps + zero.abs().max() * 1e-6)[inside & dead].all()
    assert (error.abs() > 0.51 * steps)[inside & ~dead].any()
    assert torch.equal(
        found.codes, gptq(weight, scheme.type(), "minmax", None, statistics_of(x)).codes
    )


def test_a_layer_that_no_input_reached_is_searched() -> None:
    scheme, weight = parse_scheme("int4_g32"), heavy(16, 64)
    expected = scale_search(weight, scheme.type(), "minmax")
    for unknown in (Statistics.of(64), statistics_of(torch.zeros(9, 64))):
        found = gptq(weight, scheme.type(), "minmax", statistics=unknown)
        assert torch.equal(found.dequantize(), expected.dequantize())


def test_the_factor_is_of_the_inverse() -> None:
    gram = statistics_of(correlated(500, 96)).gram.double()
    upper = inverse_factor(gram)
    damped = gram + torch.eye(96) * DAMPING[0] * gram.diagonal().mean()
    assert torch.equal(upper, upper.triu())
    found, eye = upper.T @ upper @ damped, torch.eye(96, dtype=torch.float64)
    torch.testing.assert_close(found, eye, rtol=1e-5, atol=1e-5)


def test_a_matrix_without_a_factor_is_damped_more_then_refused() -> None:
    gram = torch.eye(4)
    gram[0, 1] = gram[1, 0] = 1.05  # least eigenvalue −0.05: the second damping makes up for it
    upper = inverse_factor(gram)
    expected = torch.linalg.inv(gram + DAMPING[1] * torch.eye(4))
    torch.testing.assert_close(upper.T @ upper, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="no Cholesky factor, however damped"):
        inverse_factor(torch.full((4, 4), torch.nan))


def test_what_it_has_no_meaning_for_is_refused() -> None:
    type_, weight = parse_scheme("int4_g32").type(), heavy(4, 64)
    with pytest.raises(ValueError, match="needs statistics of the layer's inputs: give calib"):
        gptq(weight, type_, "minmax")
    with pytest.raises(ValueError, match="the statistics are of 32 features"):
        gptq(weight, type_, "minmax", statistics=Statistics.of(32))
    with pytest.raises(GqcError, match="no quantizer 'gtpq' for int4_g32"):
        parse_scheme("int4_g32+gtpq")
