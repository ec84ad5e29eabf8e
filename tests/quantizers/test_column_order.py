"""Column order: by the sizes of columns, where outputs then err less."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from quantizers.inputs import correlated, output_error, statistics_of

from gqc.quantizers import Statistics, column_order, quantize
from gqc.quantizers.factors import quantized_inputs
from gqc.schemes import parse_scheme


def uneven(rows: int, k: int) -> torch.Tensor:
    """A weight whose columns are large and small in turns."""
    weight = torch.randn(rows, k, generator=torch.Generator().manual_seed(rows + k))
    weight[:, ::2] *= 4
    return weight


@pytest.mark.parametrize("text", ["int4_g32+gptq", "int3_g32_sym+awq+gptq", "w4a16_mxfp4+gptq"])
def test_outputs_err_less_in_the_order(text: str) -> None:
    scheme, x, weight = parse_scheme(text), correlated(600, 128), uneven(48, 128)
    statistics = statistics_of(x)
    order = column_order([weight], scheme, statistics)
    assert order is not None and order.sort().values.equal(torch.arange(128))
    assert torch.equal(order % 2, torch.arange(128) // 64)  # the large ones first
    before = quantize(weight, scheme, statistics).dequantize()
    after = quantize(weight[:, order], scheme, statistics.permuted(order)).dequantize()
    error = output_error(after, weight[:, order], x[:, order])
    assert error < 0.9 * output_error(before, weight, x)


def test_sizes_are_of_all_layers_that_read_the_input() -> None:
    scheme, first = parse_scheme("int4_g32+gptq"), uneven(24, 64)
    second = 2 * uneven(40, 64).roll(1, 1)
    order = column_order([first, second], scheme, statistics_of(correlated(300, 64)))
    size = torch.cat([first, second]).square().sum(0)
    assert order is not None and torch.equal(size[order], size.sort(descending=True).values)


@pytest.mark.parametrize("spike", [1, 100])
def test_inputs_that_are_quantized_count(spike: float) -> None:
    """An order that serves the weight is not taken if it ruins the blocks of the input."""
    scheme, weight = parse_scheme("mxfp4+gptq"), uneven(32, 64)
    trial, activation = replace(scheme, quantizer="scale_search"), scheme.activation
    assert activation is not None
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    x[:, 0] *= spike  # among large columns, whose inputs share a block in the order
    statistics = statistics_of(x)
    exact = statistics.sample.double() @ weight.double().T

    def error(order: torch.Tensor) -> float:
        found = statistics.permuted(order)
        rounded = quantize(weight[:, order], trial, found).dequantize(torch.float64)
        given = quantized_inputs(found, activation).double()
        return float((given @ rounded.T - exact).square().sum())

    by_size = weight.square().sum(0).argsort(descending=True, stable=True)
    better = error(by_size) < error(torch.arange(64))
    assert better == (spike == 1)
    assert (column_order([weight], scheme, statistics) is not None) == better


def test_no_order_is_given_where_none_is_better() -> None:
    scheme, weight, x = parse_scheme("int4_g32+gptq"), uneven(48, 128), correlated(600, 128)
    for unknown in (Statistics.of(128), statistics_of(torch.zeros(9, 128))):
        assert column_order([weight], scheme, unknown) is None
    order = column_order([weight], scheme, statistics_of(x))
    assert order is not None
    sorted_already = weight[:, order]
    assert column_order([sorted_already], scheme, statistics_of(x[:, order])) is None
