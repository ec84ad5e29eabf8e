"""Arguments of torch calls as attributes, and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp, TensorType, f32

from gqc.dialects.fx import CallOp, call, decode_argument, resolve_callee
from gqc.dialects.gq import WeightOp
from gqc.dialects.interpret import run
from gqc.dialects.text import parse_ir, print_ir

NAMED = [
    torch.bfloat16,
    torch.int64,
    torch.device("cpu"),
    torch.device("cuda:1"),
    torch.strided,
    torch.channels_last,
    torch.preserve_format,
]
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(NAMED)
)
arguments = st.recursive(scalars, lambda items: st.lists(items, max_size=3), max_leaves=8)


def through_text(op: CallOp) -> CallOp:
    """The call, printed and parsed again with the operations that make its operands."""
    owners = dict.fromkeys(operand.owner for operand in op.operands)
    module = parse_ir(print_ir(ModuleOp([*owners, op])))  # pyright: ignore
    return next(each for each in module.walk() if isinstance(each, CallOp))


def same(a: Any, b: Any) -> bool:
    """Equal in type too: 1, 1.0 and True are three arguments."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@settings(max_examples=60, deadline=None)
@given(args=st.lists(arguments, max_size=3), keyword=arguments)
def test_constants_survive_attributes_and_text(args: list[Any], keyword: Any) -> None:
    op = through_text(call("aten.any.default", args, {"key": keyword}, []))
    assert same(decode_argument(op.args, ()), args)
    assert same(decode_argument(op.kwargs.data["key"], ()), keyword)


def test_nan_survives() -> None:
    op = through_text(call("aten.any.default", [float("nan")], {}, []))
    (value,) = decode_argument(op.args, ())
    assert value != value


def test_values_stand_where_they_stood() -> None:
    a, b = (WeightOp(name, TensorType(f32, [2])).result for name in "ab")
    op = through_text(call("aten.cat.default", [[a, b, a], 1], {"out": b}, []))
    assert decode_argument(op.args, ("a", "b", "a", "b")) == [["a", "b", "a"], 1]
    assert decode_argument(op.kwargs.data["out"], ("a", "b", "a", "b")) == "b"


def test_an_argument_without_an_attribute_is_refused() -> None:
    with pytest.raises(TypeError, match="argument of type complex: 1j"):
        call("aten.any.default", [1j], {}, [])


@pytest.mark.parametrize(
    "name, function",
    [
        ("aten.linear.default", torch.ops.aten.linear.default),
        ("_operator.add", __import__("operator").add),
        ("math.sqrt", __import__("math").sqrt),
        ("torch.sym_max", torch.sym_max),
    ],
)
def test_callees(name: str, function: Any) -> None:
    assert resolve_callee(name) is function


def test_an_unknown_callee_is_refused() -> None:
    with pytest.raises(AttributeError):
        resolve_callee("aten.no_such_function.default")


def test_calls_run_with_lists_keywords_and_several_results() -> None:
    module = parse_ir("""
    func.func @forward(%x : tensor<2x8xf32>) -> (tensor<2x8xf64>, index) {
      %a, %b = fx.call "aten.split.Tensor"(%x, 4, -1) : (tensor<2x8xf32>) -> (tensor<2x4xf32>, tensor<2x4xf32>)
      %c = fx.call "aten.cat.default"([%b, %a], 1) : (tensor<2x4xf32>, tensor<2x4xf32>) -> tensor<2x8xf32>
      %d = fx.call "aten._to_copy.default"(%c) {dtype = #fx.dtype<"float64">} : (tensor<2x8xf32>) -> tensor<2x8xf64>
      %n = fx.call "aten.sym_size.int"(%d, 1) : (tensor<2x8xf64>) -> index
      %m = fx.call "_operator.mul"(%n, 3) : (index) -> index
      func.return %d, %m : tensor<2x8xf64>, index
    }
    """)  # noqa: E501
    x = torch.randn(2, 8)
    y, m = run(module, {}, (x,))
    assert y.dtype == torch.float64 and torch.equal(y.float(), x.roll(4, 1))
    assert m == 24
