"""Each op that is an expression: the function that prints it, in the table EXPRESSIONS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from xdsl.dialects import arith, math
from xdsl.dialects.builtin import FixedBitwidthType, FloatAttr, IntegerAttr, StringAttr
from xdsl.ir import BlockArgument, Operation, SSAValue

from gqc.codegen.triton import quantize
from gqc.dialects import tile
from gqc.dialects.tile import element_of, shape_of
from gqc.dialects.tile_compute import holds_integers
from gqc.errors import GqcError
from gqc.formats.elements import ELEMENTS, SCALES, Element
from gqc.formats.packing import planes_of

if TYPE_CHECKING:
    from gqc.codegen.triton.emitter import Emitter

PITCH = 16
"""What a row of an array must be a multiple of, in bytes, for a tensor descriptor to hold it."""

DTYPES = {
    "f16": ("float16", "fp16"),
    "bf16": ("bfloat16", "bf16"),
    "f32": ("float32", "fp32"),
    "i32": ("int32", "i32"),
    "i8": ("uint8", "u8"),
    "f8E8M0FNU": ("uint8", "u8"),
    "f8E4M3FN": ("uint8", "u8"),
}
"""IR element type: its name in `tl.…`, and in the signature of a kernel.

Scales of 8 bits are bytes, decoded by arithmetic: Triton has no E8M0, and E4M3 on few GPUs. (Only
arrays that `tl.dot_scaled` reads are E4M3 to Triton, which it tells from E8M0 by the type.)
"""


HALF_BIAS = SCALES["f16"].bias

DOT_FORMATS = {"f4E2M1FN": "e2m1", "f8E4M3FN": "e4m3", "f8E5M2": "e5m2"}
"""Elements of codes that `tl.dot_scaled` takes, and what it calls them. A tile of codes is one of
bytes in Triton: `tile.bitcast` is not printed, and two 4-bit codes make one element."""


def dtype_names(value: SSAValue) -> tuple[str, str]:
    """The row of DTYPES of an array's or a tile's element type."""
    key = str(element_of(value))
    if key not in DTYPES:
        raise GqcError(f"the Triton backend has no arrays or tiles of {key}")
    return DTYPES[key]


def dtype(value: SSAValue) -> str:
    return dtype_names(value)[0]


def dims(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def spreads(op: Operation) -> bool:
    """Whether an op gives a dimension of 1, or a missing one, the extent of its result."""
    if isinstance(op, tile.RepeatOp):
        return shape_of(op.source)[op.axis.value.data] == 1
    return isinstance(op, tile.BroadcastOp)


def constant(printer: Emitter, op: arith.ConstantOp) -> str:
    if not isinstance(op.value, IntegerAttr | FloatAttr):
        raise GqcError(f"kernel {printer.name}: the Triton backend prints scalar constants only")
    return str(op.value.value.data)


def program_id(printer: Emitter, op: tile.ProgramIdOp) -> str:
    return f"tl.program_id({op.axis.value.data})"


def full(printer: Emitter, op: tile.FullOp) -> str:
    value = op.value.value.data
    return f"tl.full({dims(shape_of(op.result))}, {value}, tl.{dtype(op.result)})"


def load(printer: Emitter, op: tile.LoadOp) -> str:
    if by_descriptor(op):
        place = ", ".join(printer.texts[offset] for offset in op.offsets)
        return f"{printer.texts[op.source]}.load([{place}])"
    pointers, mask = printer.access(op.source, op.offsets, op.result)
    zero = "0.0" if printer.names_of(op.source)[0].startswith("float8") else "0"
    return f"tl.load({pointers}{mask}{f', other={zero}' if mask else ''})"


def by_descriptor(op: Operation) -> bool:
    """Whether an op copies a tile through a tensor descriptor, which knows the array's bounds."""
    if not isinstance(op, tile.LoadOp | tile.StoreOp):
        return False
    array, value = accessed(op)
    if not isinstance(array, BlockArgument):
        return False
    kernel, shape = array.owner.parent_op(), shape_of(array)
    if kernel is None or kernel.attributes.get("copies") != StringAttr("tma") or len(shape) < 2:
        return False
    element = element_of(array)
    assert isinstance(element, FixedBitwidthType)
    whole = len(shape_of(value)) == len(shape)
    return whole and shape[-1] * element.size % PITCH == 0


def accessed(op: tile.LoadOp | tile.StoreOp) -> tuple[SSAValue, SSAValue]:
    """The array and the tile."""
    return (op.source, op.result) if isinstance(op, tile.LoadOp) else (op.target, op.value)


def unpack(printer: Emitter, op: tile.UnpackOp) -> str:
    """Codes as int16: planes unpacked one by one, put together, and the sign of integers extended.

    Codes of floats are bit patterns.
    """
    element = ELEMENTS[str(element_of(op.result))]
    if op.order_name != "pairs":
        raise GqcError(f"kernel {printer.name}: the Triton backend reads no {op.order_name}")
    if len(shape_of(op.result)) != 2:
        raise GqcError(
            f"kernel {printer.name}: the Triton backend unpacks codes of rank 2, "
            f"not of rank {len(shape_of(op.result))}"
        )
    along_rows, parts, low = op.axis.value.data == 0, [], 0
    unpack, split = printer.helper("unpack_pairs"), printer.helper("split_pairs")
    for words_, plane in zip(op.planes, planes_of(element.bits), strict=True):
        words = printer.texts[words_]
        part = f"{unpack}({f'tl.trans({words})' if along_rows else words}, {plane.width})"
        parts.append(f"({part} << {low})" if low else part)
        low += plane.width
    codes = f"{split}({' | '.join(parts)})"
    if along_rows:
        codes = f"tl.trans({codes})"
    if element.is_signed_integer:
        sign = 1 << element.bits - 1
        codes = f"(({codes}) ^ {sign}) - {sign}"
    return codes


def cast(printer: Emitter, op: tile.CastOp) -> str:
    source, kind = printer.texts[op.source], str(element_of(op.source))
    if op.source in printer.values:
        return quantize.cast(printer, op)
    if kind in DECODERS:
        source = DECODERS[kind](printer, source)
    return f"{source}.to(tl.{dtype(op.result)})"


def decode_e8m0(printer: Emitter, codes: str) -> str:
    return f"{printer.helper('decode_e8m0')}({codes})"


def float_decoder(element: Element) -> Callable[[Emitter, str], str]:
    """Bit patterns to float16, which holds every value: see `decode_float`."""

    def decode(printer: Emitter, codes: str) -> str:
        places = f"{element.bits}, {element.mantissa}, {2.0 ** (HALF_BIAS - element.bias)}"
        decoded = f"{printer.helper('decode_float')}({codes}, {places})"
        if element.specials != "nan":
            return decoded
        return f"{printer.helper('keep_nan')}({decoded}, {codes}, {2 ** (element.bits - 1) - 1})"

    return decode


def table_decoder(element: Element) -> Callable[[Emitter, str], str]:
    """Codes of a codebook to float32."""
    return lambda printer, codes: f"{printer.helper(f'decode_{element.name}')}({codes})"


DECODERS: dict[str, Callable[[Emitter, str], str]] = {
    "f8E8M0FNU": decode_e8m0,
    **{
        e.name: table_decoder(e) if e.table else float_decoder(e)
        for e in ELEMENTS.values()
        if not e.is_integer
    },
}
"""Formats of codes that are bit patterns, and what prints their values."""


def repeat(printer: Emitter, op: tile.RepeatOp) -> str:
    if spreads(op):
        return broadcast(printer, op)
    source, axis, times = printer.texts[op.source], op.axis.value.data, op.times.value.data
    if len(shape_of(op.source)) != 2:
        raise GqcError(f"kernel {printer.name}: the Triton backend repeats tiles of rank 2 only")
    function = printer.helper("repeat")
    if axis == 1:
        return f"{function}({source}, {times})"
    return f"tl.trans({function}(tl.trans({source}), {times}))"


def expanded(printer: Emitter, op: Operation) -> str:
    """The source with leading dimensions of 1, up to the rank of the result."""
    source, rank = printer.texts[op.operands[0]], len(shape_of(op.operands[0]))
    missing = len(shape_of(op.results[0])) - rank
    return f"{source}[{', '.join(['None'] * missing + [':'] * rank)}]" if missing else source


def broadcast(printer: Emitter, op: Operation) -> str:
    return f"tl.broadcast_to({expanded(printer, op)}, {dims(shape_of(op.results[0]))})"


def transpose(printer: Emitter, op: tile.TransposeOp) -> str:
    return f"tl.trans({printer.texts[op.source]})"


def reduce_sum(printer: Emitter, op: tile.SumOp) -> str:
    if holds_integers(op.source):
        raise GqcError(f"kernel {printer.name}: the Triton backend sums no integers")
    source = printer.texts[op.source]
    if dtype(op.source) != "float32":
        source = f"{source}.to(tl.float32)"
    return f"tl.sum({source}, axis={op.axis.value.data}, keep_dims=True)"


def reduce_max(printer: Emitter, op: tile.MaxOp) -> str:
    return f"tl.max({printer.texts[op.source]}, axis={op.axis.value.data}, keep_dims=True)"


def dot(printer: Emitter, op: tile.DotOp) -> str:
    """Products of f32 tiles are asked for in full: Triton would round the operands to TF32."""
    if holds_integers(op.lhs):
        raise GqcError(f"kernel {printer.name}: the Triton backend multiplies no integers")
    operands = f"{printer.texts[op.lhs]}, {printer.texts[op.rhs]}, {printer.texts[op.acc]}"
    exact = ', input_precision="ieee"' if dtype(op.lhs) == "float32" else ""
    return f"tl.dot({operands}{exact})"


def bitcast(printer: Emitter, op: tile.BitcastOp) -> str:
    """Bytes stay bytes."""
    return quantize.stored(printer, op.source)


def widen(printer: Emitter, op: tile.WidenOp) -> str:
    source, result = op.formats
    if (source.name, result.name) != ("f4E2M1FN", "f8E4M3FN"):
        raise GqcError(
            f"kernel {printer.name}: the Triton backend widens f4E2M1FN to f8E4M3FN, "
            f"not {source.name} to {result.name}"
        )
    return f"{printer.helper('widen_e2m1')}({printer.texts[op.source]})"


def reshape(printer: Emitter, op: tile.ReshapeOp) -> str:
    return f"tl.reshape({quantize.stored(printer, op.source)}, {dims(shape_of(op.result))})"


def permute(printer: Emitter, op: tile.PermuteOp) -> str:
    return f"tl.permute({printer.texts[op.source]}, {dims(op.axes)})"


def dot_scaled(printer: Emitter, op: tile.DotScaledOp) -> str:
    def operand(codes: SSAValue, scale: SSAValue) -> str:
        name = str(element_of(codes))
        if name not in DOT_FORMATS:
            raise GqcError(f"kernel {printer.name}: Triton multiplies no {name} under scales")
        return f'{printer.texts[codes]}, {printer.texts[scale]}, "{DOT_FORMATS[name]}"'

    lhs, rhs = operand(op.lhs, op.lhs_scale), operand(op.rhs, op.rhs_scale)
    return f"tl.dot_scaled({lhs}, {rhs}, {printer.texts[op.acc]})"


def binary(symbol: str) -> Callable[[Emitter, Operation], str]:
    def expression(printer: Emitter, op: Operation) -> str:
        return f" {symbol} ".join(printer.operands(op.operands))

    return expression


def function(name: str) -> Callable[[Emitter, Operation], str]:
    def expression(printer: Emitter, op: Operation) -> str:
        return f"{name}({printer.texts[op.operands[0]]})"

    return expression


def helped(name: str) -> Callable[[Emitter, Operation], str]:
    """A function that the file defines."""

    def expression(printer: Emitter, op: Operation) -> str:
        return f"{printer.helper(name)}({printer.texts[op.operands[0]]})"

    return expression


def maximum(printer: Emitter, op: arith.MaximumfOp) -> str:
    a, b = (printer.texts[operand] for operand in op.operands)
    return f"tl.maximum({a}, {b}, propagate_nan=tl.PropagateNan.ALL)"


def take_panels(printer: Emitter, op: tile.TakePanelsOp) -> str:
    places = f"{op.panel.value.data}, {op.part.value.data}"
    return f"{printer.helper('take_panels')}({printer.texts[op.source]}, {places})"


EXPRESSIONS: dict[type[Operation], Callable[[Emitter, Any], str]] = {
    arith.ConstantOp: constant,
    arith.AddiOp: binary("+"),
    arith.SubiOp: binary("-"),
    arith.MuliOp: binary("*"),
    arith.DivUIOp: binary("//"),
    arith.RemUIOp: binary("%"),
    arith.AddfOp: binary("+"),
    arith.SubfOp: binary("-"),
    arith.MulfOp: binary("*"),
    arith.DivfOp: binary("/"),
    arith.MaximumfOp: maximum,
    math.ExpOp: function("tl.exp"),
    math.ErfOp: function("tl.erf"),
    math.TanhOp: helped("tanh"),
    math.RsqrtOp: function("tl.rsqrt"),
    tile.ProgramIdOp: program_id,
    tile.FullOp: full,
    tile.LoadOp: load,
    tile.UnpackOp: unpack,
    tile.CastOp: cast,
    tile.RepeatOp: repeat,
    tile.BroadcastOp: broadcast,
    tile.TransposeOp: transpose,
    tile.SumOp: reduce_sum,
    tile.MaxOp: reduce_max,
    tile.TakePanelsOp: take_panels,
    tile.DotOp: dot,
    tile.BitcastOp: bitcast,
    tile.WidenOp: widen,
    tile.ReshapeOp: reshape,
    tile.PermuteOp: permute,
    tile.DotScaledOp: dot_scaled,
}
"""Every op that is an expression, and the function that prints it."""
