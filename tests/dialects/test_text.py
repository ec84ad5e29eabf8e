"""IR as text: what is printed parses as the same, with locations or without."""

from __future__ import annotations

import pytest
from xdsl.dialects.builtin import NameLoc
from xdsl.utils.exceptions import ParseError, VerifyException

from gqc.dialects.text import parse_ir, print_ir

TEXT = """\
func.func @forward(%x : tensor<?x64xf32> {fx.dims = ["batch", 64 : i64]}) -> (tensor<?x8xf32> {fx.mutates = "cache"}) {
  %w = gq.weight @"model.fc.weight" : tensor<8x64xf32>
  %y = fx.call "aten.linear.default"(%x, %w) : (tensor<?x64xf32>, tensor<8x64xf32>) -> tensor<?x8xf32> loc("model.fc")
  func.return %y : tensor<?x8xf32>
}
"""  # noqa: E501


def test_locations_are_kept() -> None:
    text = print_ir(parse_ir(TEXT))
    assert 'loc("model.fc")' in text and "unknown" not in text
    again = parse_ir(text)
    names = [op.location.desc.data for op in again.walk() if isinstance(op.location, NameLoc)]
    assert names == ["model.fc"]
    assert print_ir(again) == text


def test_locations_may_be_left_out() -> None:
    text = print_ir(parse_ir(TEXT), locations=False)
    assert "loc(" not in text
    assert parse_ir(text).is_structurally_equivalent(parse_ir(TEXT))


def test_attributes_of_arguments_and_results_are_kept() -> None:
    text = print_ir(parse_ir(TEXT))
    assert 'fx.dims = ["batch", 64 : i64]' in text and 'fx.mutates = "cache"' in text


def test_text_that_is_no_ir_is_refused_at_its_place() -> None:
    with pytest.raises(ParseError, match=r"model.mlir:2"):
        parse_ir(TEXT.replace("gq.weight @", "gq.weight !"), "model.mlir")


def test_a_module_that_does_not_verify_is_refused() -> None:
    with pytest.raises(VerifyException, match=r"gq.weight C1"):
        parse_ir("%w = gq.weight @w : tensor<?xf32>")
