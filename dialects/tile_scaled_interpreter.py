"""Meaning of the `tile` operations on codes of narrow floats.

A tile of codes is a uint8 tensor of bit patterns, one a byte, or a tensor of torch's own dtype for
the format.
"""

from __future__ import annotations

from typing import Any

from xdsl.interpreter import Interpreter, InterpreterFunctions, impl, register_impls

from gqc.dialects import tile
from gqc.formats.elements import ELEMENTS, SCALES, Element

Values = tuple[Any, ...]


def patterns(codes: Any) -> Any:
    """Bit patterns uint8 of a tile of codes or bytes."""
    import torch

    return codes.view(torch.uint8)


def decoded(codes: Any, element: Element) -> Any:
    """Values float64 of a tile of codes."""
    import torch

    table = torch.tensor(element.values, dtype=torch.float64)
    return table[patterns(codes).long()]


def regrouped(codes: Any, source: int, result: int) -> Any:
    """Unsigned numbers of `source` bits along the last axis as such of `result` bits, low first."""
    import torch

    stream = (codes[..., None] >> torch.arange(source)) & 1
    groups = stream.flatten(-2).unflatten(-1, (-1, result)).long()
    return (groups << torch.arange(result)).sum(-1).to(torch.uint8)


@register_impls
class ScaledFunctions(InterpreterFunctions):
    @impl(tile.BitcastOp)
    def run_bitcast(self, interpreter: Interpreter, op: tile.BitcastOp, args: Values) -> Values:
        import torch

        result = ELEMENTS.get(str(tile.element_of(op.result)))
        source = ELEMENTS.get(str(tile.element_of(op.source)))
        bits = [8 if element is None else element.bits for element in (source, result)]
        codes = regrouped(patterns(args[0]), *bits)
        bytes_ = result is None or result.is_signed_integer
        return (codes.view(torch.int8) if bytes_ else codes,)

    @impl(tile.WidenOp)
    def run_widen(self, interpreter: Interpreter, op: tile.WidenOp, args: Values) -> Values:
        source, result = op.formats
        codes, sign = patterns(args[0]), source.bits - 1
        magnitude = (codes & (1 << sign) - 1) << (result.mantissa - source.mantissa)
        return ((codes >> sign << result.bits - 1) | magnitude,)

    @impl(tile.ReshapeOp)
    def run_reshape(self, interpreter: Interpreter, op: tile.ReshapeOp, args: Values) -> Values:
        return (args[0].reshape(tile.shape_of(op.result)),)

    @impl(tile.PermuteOp)
    def run_permute(self, interpreter: Interpreter, op: tile.PermuteOp, args: Values) -> Values:
        return (args[0].permute(op.axes),)

    @impl(tile.DotScaledOp)
    def run_dot_scaled(
        self, interpreter: Interpreter, op: tile.DotScaledOp, args: Values
    ) -> Values:
        """Sums in f32 of products that are exact in f64, as the accumulator's format has it."""
        acc, lhs, lhs_scale, rhs, rhs_scale = args
        left = decoded(lhs, ELEMENTS[str(tile.element_of(op.lhs))])
        right = decoded(rhs.t(), ELEMENTS[str(tile.element_of(op.rhs))])
        format_ = SCALES[str(tile.element_of(op.lhs_scale))]
        left = left * decoded(lhs_scale, format_).repeat_interleave(op.block, 1)
        right = right * decoded(rhs_scale, format_).repeat_interleave(op.block, 1)
        return ((acc.double() + left @ right.t()).to(acc.dtype),)
