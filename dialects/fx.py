"""The `fx` dialect: one opaque, typed operation for any call of a torch.fx graph.

`fx.call` names the callee as torch.fx does (`aten.linear.default`, `_operator.add`) and carries its
arguments as a template: nested lists of constants in which `#fx.operand<i>` stands for operand i.
Symbolic integers, floats and booleans are `index`, `f64` and `i1` values. A callee that returns a
list has one result for each item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from xdsl.dialects.builtin import (
    ArrayAttr,
    BytesAttr,
    DictionaryAttr,
    FloatAttr,
    IntAttr,
    IntegerAttr,
    StringAttr,
    TensorType,
    f64,
    i1,
    i64,
)
from xdsl.ir import Attribute, Dialect, Operation, ParametrizedAttribute, SSAValue
from xdsl.irdl import (
    IRDLOperation,
    irdl_attr_definition,
    irdl_op_definition,
    prop_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.parser import AttrParser, Parser
from xdsl.printer import Printer
from xdsl.traits import EffectInstance, MemoryEffect

from gqc.dialects.constraints import require


@irdl_attr_definition
class OperandAttr(ParametrizedAttribute):
    """Placeholder for operand `index` in an argument template."""

    name = "fx.operand"
    index: IntAttr

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> list[Attribute]:
        with parser.in_angle_brackets():
            return [IntAttr(parser.parse_integer(allow_negative=False))]

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string(str(self.index.data))


@irdl_attr_definition
class NoneAttr(ParametrizedAttribute):
    """Python's None."""

    name = "fx.none"


class NamedConstantAttr(ParametrizedAttribute):
    """A torch constant that has a name: `#fx.dtype<"float32">`."""

    value: StringAttr

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> list[Attribute]:
        with parser.in_angle_brackets():
            return [StringAttr(parser.parse_str_literal())]

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string_literal(self.value.data)


@irdl_attr_definition
class DtypeAttr(NamedConstantAttr):
    """A `torch.dtype`."""

    name = "fx.dtype"
    value: StringAttr


@irdl_attr_definition
class DeviceAttr(NamedConstantAttr):
    """A `torch.device`."""

    name = "fx.device"
    value: StringAttr


@irdl_attr_definition
class LayoutAttr(NamedConstantAttr):
    """A `torch.layout`."""

    name = "fx.layout"
    value: StringAttr


@irdl_attr_definition
class MemoryFormatAttr(NamedConstantAttr):
    """A `torch.memory_format`."""

    name = "fx.memory_format"
    value: StringAttr


NAMED_CONSTANTS: dict[str, type[NamedConstantAttr]] = {
    "dtype": DtypeAttr,
    "layout": LayoutAttr,
    "memory_format": MemoryFormatAttr,
}


def encode_argument(value: Any, encode_value: Callable[[Any], Attribute | None]) -> Attribute:
    """Template of one argument of a call.

    `encode_value` gives the `OperandAttr` of a graph value and None for a constant. Raises
    TypeError on a constant that has no attribute.
    """
    import torch

    operand = encode_value(value)
    if operand is not None:
        return operand
    match value:
        case None:
            return NoneAttr()
        case bool():
            return IntegerAttr(int(value), i1)
        case int():
            return IntegerAttr(value, i64)
        case float():
            return FloatAttr(value, f64)
        case str():
            return StringAttr(value)
        case torch.device():
            return DeviceAttr(StringAttr(str(value)))
        case list() | tuple():
            return ArrayAttr([encode_argument(v, encode_value) for v in value])
    for kind, attribute in NAMED_CONSTANTS.items():
        if isinstance(value, getattr(torch, kind)):
            return attribute(StringAttr(str(value).removeprefix("torch.")))
    raise TypeError(f"no attribute stands for an argument of type {type(value).__name__}: {value}")


def decode_argument(attr: Attribute, operands: Sequence[Any]) -> Any:
    """The argument that a template stands for, given what its operands stand for."""
    import torch

    match attr:
        case OperandAttr():
            return operands[attr.index.data]
        case NoneAttr():
            return None
        case IntegerAttr() if attr.type == i1:
            return bool(attr.value.data)
        case IntegerAttr() | FloatAttr():
            return attr.value.data
        case StringAttr():
            return attr.data
        case BytesAttr():  # a string that is not ASCII, once it was text
            return attr.data.decode()
        case DeviceAttr():
            return torch.device(attr.value.data)
        case NamedConstantAttr():
            return getattr(torch, attr.value.data)
        case ArrayAttr():
            return [decode_argument(a, operands) for a in attr]
    raise TypeError(f"{attr} is not an argument template")


def operands_in(attr: Attribute) -> list[int]:
    """Operand numbers that a template mentions, in order."""
    match attr:
        case OperandAttr():
            return [attr.index.data]
        case ArrayAttr():
            return [i for a in attr for i in operands_in(a)]
        case DictionaryAttr():
            return [i for a in attr.data.values() for i in operands_in(a)]
    return []


class CallEffects(MemoryEffect):
    """A call has no effect where torch says so of its callee; of any other, effects are unknown.

    Functions that write their arguments, draw random numbers or assert have effects. A function of
    Python is known to have none on numbers only.
    """

    @classmethod
    def get_effects(cls, op: Operation) -> set[EffectInstance] | None:
        assert isinstance(op, CallOp)
        effect = effect_of(op.callee.data)
        numbers = not any(isinstance(value.type, TensorType) for value in op.operands)
        return set() if effect == "none" or (effect == "on tensors" and numbers) else None


@cache
def effect_of(callee: str) -> str:
    """Whether a callee has effects: `none`, `unknown`, or `on tensors`."""
    import torch

    try:
        function = resolve_callee(callee)
    except AttributeError:
        return "unknown"
    if torch.fx.Graph().call_function(function).is_impure():
        return "unknown"
    return "none" if isinstance(function, torch._ops.OpOverload) else "on tensors"


@irdl_op_definition
class CallOp(IRDLOperation):
    """A call of a torch function.

    C1 the templates mention each operand, and no other.
    """

    name = "fx.call"

    callee = prop_def(StringAttr)
    args = prop_def(ArrayAttr)
    kwargs = prop_def(DictionaryAttr)
    operands_ = var_operand_def()
    results_ = var_result_def()
    traits = traits_def(CallEffects())

    def __init__(
        self,
        callee: str,
        operands: Sequence[SSAValue],
        args: ArrayAttr,
        kwargs: DictionaryAttr,
        result_types: Sequence[Attribute],
    ):
        super().__init__(
            operands=[operands],
            properties={"callee": StringAttr(callee), "args": args, "kwargs": kwargs},
            result_types=[result_types],
        )

    def verify_(self) -> None:
        mentioned = {*operands_in(self.args), *operands_in(self.kwargs)}
        expected = set(range(len(self.operands)))
        require(
            mentioned == expected,
            self,
            "C1",
            f"the arguments mention operands {sorted(mentioned)}, the call has {sorted(expected)}",
        )

    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_string_literal(self.callee.data)
        with printer.in_parens():
            printer.print_list(self.args, lambda a: self.print_argument(printer, a))
        if self.kwargs.data:
            printer.print_string(" ")
            with printer.in_braces():
                printer.print_list(
                    self.kwargs.data.items(), lambda item: self.print_keyword(printer, *item)
                )
        printer.print_op_attributes(self.attributes, print_keyword=True)
        printer.print_string(" : ")
        printer.print_function_type([o.type for o in self.operands], self.result_types)

    def print_keyword(self, printer: Printer, key: str, value: Attribute) -> None:
        printer.print_string(f"{key} = ")
        self.print_argument(printer, value)

    def print_argument(self, printer: Printer, attr: Attribute) -> None:
        match attr:
            case OperandAttr():
                printer.print_operand(self.operands[attr.index.data])
            case ArrayAttr():
                with printer.in_square_brackets():
                    printer.print_list(attr, lambda a: self.print_argument(printer, a))
            case IntegerAttr() if attr.type == i64:
                printer.print_string(str(attr.value.data))
            case _:
                printer.print_attribute(attr)

    @classmethod
    def parse(cls, parser: Parser) -> CallOp:
        callee = parser.parse_str_literal()
        operands: list[Any] = []

        def argument() -> Attribute:
            items = parser.parse_optional_comma_separated_list(parser.Delimiter.SQUARE, argument)
            if items is not None:
                return ArrayAttr(items)
            operand = parser.parse_optional_unresolved_operand()
            if operand is None:
                return parser.parse_attribute()
            operands.append(operand)
            return OperandAttr(IntAttr(len(operands) - 1))

        def keyword() -> tuple[str, Attribute]:
            key = parser.parse_identifier()
            parser.parse_punctuation("=")
            return key, argument()

        args = parser.parse_comma_separated_list(parser.Delimiter.PAREN, argument)
        kwargs = parser.parse_optional_comma_separated_list(parser.Delimiter.BRACES, keyword)
        attributes = parser.parse_optional_attr_dict_with_keyword()
        parser.parse_punctuation(":")
        type_ = parser.parse_function_type()
        resolved = parser.resolve_operands(operands, type_.inputs.data, parser.pos)
        op = cls(
            callee,
            resolved,
            ArrayAttr(args),
            DictionaryAttr(dict(kwargs or [])),
            type_.outputs.data,
        )
        if attributes is not None:
            op.attributes.update(attributes.data)
        return op


def call(
    callee: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    result_types: Sequence[Attribute],
) -> CallOp:
    """A call whose arguments are SSA values and constants, nested as torch.fx nests them.

    Each mention of a value is an operand of its own, so that printing and parsing agree.
    """
    operands: list[SSAValue] = []

    def encode_value(value: Any) -> Attribute | None:
        if not isinstance(value, SSAValue):
            return None
        operands.append(value)
        return OperandAttr(IntAttr(len(operands) - 1))

    args_template = ArrayAttr([encode_argument(a, encode_value) for a in args])
    kwargs_template = DictionaryAttr(
        {k: encode_argument(v, encode_value) for k, v in kwargs.items()}
    )
    return CallOp(callee, operands, args_template, kwargs_template, result_types)


def resolve_callee(name: str) -> Callable[..., Any]:
    """The function that a callee names: an overload of `torch.ops`, or a module's function.

    Raises AttributeError if this torch does not have it.
    """
    import math
    import operator

    import torch

    namespace, _, path = name.partition(".")
    modules = {"_operator": operator, "math": math, "torch": torch}
    found: Any = modules.get(namespace) or getattr(torch.ops, namespace)
    for part in path.split("."):
        found = getattr(found, part)
    return found


Fx = Dialect(
    "fx", [CallOp], [OperandAttr, NoneAttr, DtypeAttr, DeviceAttr, LayoutAttr, MemoryFormatAttr]
)
