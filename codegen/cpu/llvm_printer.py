"""Print a module of the `llvm` dialect as LLVM assembly.

Ops are those that kernels are made of. xDSL's own backend knows no bf16, and takes several times as
long, since it first makes llvmlite's IR of a module.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

from xdsl.dialects import llvm
from xdsl.dialects.builtin import (
    BFloat16Type,
    DenseArrayBase,
    DenseIntOrFPElementsAttr,
    Float8E4M3FNType,
    Float8E8M0FNUType,
    Float16Type,
    Float32Type,
    IntegerType,
    ModuleOp,
    VectorType,
)
from xdsl.ir import Attribute, Block, Operation, SSAValue

from gqc.errors import GqcError

SCALARS: dict[type[Attribute], str] = {
    BFloat16Type: "bfloat",
    Float16Type: "half",
    Float32Type: "float",
    Float8E4M3FNType: "i8",  # LLVM has no types for 8-bit floats
    Float8E8M0FNUType: "i8",
    llvm.LLVMPointerType: "ptr",
    llvm.LLVMVoidType: "void",
}
NOALIAS = "llvm.noalias"
MANGLED = {"float": "f32", "half": "f16", "bfloat": "bf16"}
"""Types in the names of intrinsics."""


def print_module(module: ModuleOp) -> str:
    """LLVM assembly of a module of functions. Raises GqcError on an op that kernels do not have."""
    printer, functions = Printer(), []
    for op in module.ops:
        if not isinstance(op, llvm.FuncOp):
            raise GqcError(f"{op.name} has no LLVM assembly here")
        functions.append(printer.function(op))
    return "\n\n".join([*functions, *printer.declarations.values()]) + "\n"


class Printer:
    """Prints functions, and gathers declarations of the intrinsics that they call."""

    def __init__(self) -> None:
        self.declarations: dict[str, str] = {}
        self.texts: dict[int, str] = {}
        self.names: dict[SSAValue, str] = {}
        self.typed: dict[SSAValue, str] = {}
        """Names behind their types, as most operands have them."""
        self.labels: dict[Block, str] = {}

    def text(self, attribute: Attribute, printed: Callable[[Any], str]) -> str:
        """Text of an attribute, known by identity: to hash one takes longer."""
        text = self.texts.get(id(attribute))
        if text is None:
            text = self.texts[id(attribute)] = printed(attribute)
        return text

    def type(self, type_: Attribute) -> str:
        return self.text(type_, type_text)

    # Functions

    def function(self, func: llvm.FuncOp) -> str:
        type_, name = func.function_type, symbol(func.sym_name.data)
        result = self.type(type_.output)
        if not func.body.blocks:
            return f"declare {result} {name}({', '.join(map(self.type, type_.inputs))})"
        assert func.arg_attrs is not None
        self.name_values(func.body.blocks)
        arguments = [
            f"{self.type(arg.type)} {'noalias ' if NOALIAS in given.data else ''}{self.names[arg]}"
            for arg, given in zip(func.body.blocks[0].args, func.arg_attrs, strict=True)
        ]
        lines = [f"define {result} {name}({', '.join(arguments)}) {{"]
        for block in func.body.blocks:
            lines += self.block(block)
        return "\n".join([*lines, "}"])

    def name_values(self, blocks: Sequence[Block]) -> None:
        """Name what blocks compute, by hints and numbers; constants are their own names."""
        self.names, self.labels = {}, {block: f"b{n}" for n, block in enumerate(blocks)}
        for block in blocks:
            for arg in block.args:
                self.names[arg] = self.new_name(arg)
            for op in block.ops:
                constant = CONSTANTS.get(type(op))
                for value in op.results:
                    self.names[value] = constant(self, op) if constant else self.new_name(value)
        self.typed = {value: f"{self.type(value.type)} {n}" for value, n in self.names.items()}

    def new_name(self, value: SSAValue) -> str:
        hint = f"{value.name_hint}." if value.name_hint else "v"
        return f"%{hint}{len(self.names)}"

    def block(self, block: Block) -> list[str]:
        """A label, a phi for each argument, and the instructions."""
        lines = [f"{self.labels[block]}:"]
        sources = branches_to(block)
        for n, arg in enumerate(block.args if sources else ()):
            values = [f"[ {self.names[v[n]]}, %{self.labels[b]} ]" for b, v in sources]
            lines.append(f"  {self.names[arg]} = phi {self.type(arg.type)} {', '.join(values)}")
        for op in block.ops:
            if type(op) not in CONSTANTS:
                result = f"{self.names[op.results[0]]} = " if op.results else ""
                lines.append(f"  {result}{self.instruction(op)}")
        return lines

    def instruction(self, op: Operation) -> str:
        if type(op) not in INSTRUCTIONS:
            raise GqcError(f"{op.name} has no LLVM instruction here")
        return INSTRUCTIONS[type(op)](self, op, op.operands)

    def call(self, op: Operation, name: str) -> str:
        result = self.type(op.results[0].type) if op.results else "void"
        return f"call {result} {symbol(name)}({', '.join([self.typed[v] for v in op.operands])})"

    def intrinsic(self, op: Operation, name: str) -> str:
        if name not in self.declarations:
            result = self.type(op.results[0].type) if op.results else "void"
            inputs = ", ".join(self.type(v.type) for v in op.operands)
            self.declarations[name] = f"declare {result} {symbol(name)}({inputs})"
        return self.call(op, name)


def branches_to(block: Block) -> list[tuple[Block, Sequence[SSAValue]]]:
    """Blocks that branch to a block, and the values that its arguments have then."""
    found: list[tuple[Block, Sequence[SSAValue]]] = []
    for use in block.uses:
        branch = use.operation
        assert isinstance(branch, llvm.BrOp | llvm.CondBrOp) and branch.parent is not None
        if isinstance(branch, llvm.BrOp):
            found.append((branch.parent, branch.arguments))
        else:
            values = branch.else_arguments if use.index else branch.then_arguments
            found.append((branch.parent, values))
    return found


# Names, types and constants


def symbol(name: str) -> str:
    """The name of a function, quoted."""
    return '@"{}"'.format(name.replace("\\", "\\5C").replace('"', "\\22"))


def type_text(type_: Attribute) -> str:
    """A type as LLVM writes it. Raises GqcError on one that kernels do not have."""
    if isinstance(type_, IntegerType):
        return f"i{type_.width.data}"
    if isinstance(type_, VectorType):
        (lanes,) = type_.get_shape()
        return f"<{lanes} x {type_text(type_.element_type)}>"
    if isinstance(type_, llvm.LLVMStructType):
        return f"{{ {', '.join(map(type_text, type_.types))} }}"
    if type(type_) not in SCALARS:
        raise GqcError(f"{type_} has no LLVM type here")
    return SCALARS[type(type_)]


def number(value: float) -> str:
    """An integer, or a float its type has exactly; infinities and NaNs by their bits in f64."""
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return f"0x{int.from_bytes(struct.pack('>d', value)):016X}"
    return str(value) if "." in str(value) else f"{value:.17e}"


def vector(element: str, numbers: Sequence[str]) -> str:
    """A constant vector."""
    if len(set(numbers)) == 1:
        return f"splat ({element} {numbers[0]})"
    return f"<{', '.join([f'{element} {n}' for n in numbers])}>"


def value_text(value: Any) -> str:
    """The value of a constant."""
    if isinstance(value, DenseIntOrFPElementsAttr):
        element = type_text(value.get_element_type())
        return vector(element, [number(n) for n in value.get_values()])
    return number(value.value.data)


def mask_text(mask: DenseArrayBase[IntegerType]) -> str:
    """Where each lane of a shuffle comes from."""
    return f"<{len(mask)} x i32> {vector('i32', list(map(str, mask.get_values())))}"


CONSTANTS: dict[type[Operation], Callable[[Printer, Any], str]] = {
    llvm.ConstantOp: lambda p, op: p.text(op.properties["value"], value_text),
    llvm.ZeroOp: lambda p, op: "zeroinitializer",
    llvm.UndefOp: lambda p, op: "undef",
    llvm.AddressOfOp: lambda p, op: symbol(op.global_name.string_value()),
}

# Instructions

Instruction = Callable[[Printer, Any, Sequence[SSAValue]], str]
"""What is printed of an op with operands, behind the name of its result."""


def binary(word: str) -> Instruction:
    return lambda p, op, v: f"{word} {p.typed[v[0]]}, {p.names[v[1]]}"


def float_binary(word: str) -> Instruction:
    def text(p: Printer, op: Any, v: Sequence[SSAValue]) -> str:
        flags = "".join(f"{flag.value} " for flag in op.properties["fastmathFlags"].data)
        return f"{word} {flags}{p.typed[v[0]]}, {p.names[v[1]]}"

    return text


def cast(word: str) -> Instruction:
    return lambda p, op, v: f"{word} {p.typed[v[0]]} to {p.type(op.results[0].type)}"


def icmp(p: Printer, op: Any, v: Sequence[SSAValue]) -> str:
    predicate = llvm.ICmpPredicateFlag.from_int(op.predicate.value.data)
    return f"icmp {predicate} {p.typed[v[0]]}, {p.names[v[1]]}"


def getelementptr(p: Printer, op: Any, v: Sequence[SSAValue]) -> str:
    base, *indices = [p.typed[value] for value in v]
    known = op.properties["rawConstantIndices"].get_values()
    places = [indices.pop(0) if n == llvm.GEP_USE_SSA_VAL else f"i32 {n}" for n in known]
    return f"getelementptr {p.type(op.properties['elem_type'])}, {base}, {', '.join(places)}"


def shuffle(p: Printer, op: Any, v: Sequence[SSAValue]) -> str:
    mask = p.text(op.properties["mask"], mask_text)
    return f"shufflevector {p.typed[v[0]]}, {p.typed[v[1]]}, {mask}"


def fma(p: Printer, op: Any, v: Sequence[SSAValue]) -> str:
    type_ = v[0].type
    lanes = f"v{type_.get_shape()[0]}" if isinstance(type_, VectorType) else ""
    element = type_.element_type if isinstance(type_, VectorType) else type_
    return p.intrinsic(op, f"llvm.fma.{lanes}{MANGLED[p.type(element)]}")


def all_operands(word: str) -> Instruction:
    return lambda p, op, v: f"{word} {', '.join([p.typed[value] for value in v])}"


def aligned(op: Any) -> str:
    return f"align {op.properties['alignment'].value.data}"


INSTRUCTIONS: dict[type[Operation], Instruction] = {
    llvm.AddOp: binary("add"),
    llvm.SubOp: binary("sub"),
    llvm.MulOp: binary("mul"),
    llvm.UDivOp: binary("udiv"),
    llvm.URemOp: binary("urem"),
    llvm.ShlOp: binary("shl"),
    llvm.LShrOp: binary("lshr"),
    llvm.AShrOp: binary("ashr"),
    llvm.AndOp: binary("and"),
    llvm.OrOp: binary("or"),
    llvm.XOrOp: binary("xor"),
    llvm.FAddOp: float_binary("fadd"),
    llvm.FSubOp: float_binary("fsub"),
    llvm.FMulOp: float_binary("fmul"),
    llvm.FDivOp: float_binary("fdiv"),
    llvm.TruncOp: cast("trunc"),
    llvm.ZExtOp: cast("zext"),
    llvm.SExtOp: cast("sext"),
    llvm.BitcastOp: cast("bitcast"),
    llvm.FPExtOp: cast("fpext"),
    llvm.FPTruncOp: cast("fptrunc"),
    llvm.SIToFPOp: cast("sitofp"),
    llvm.ICmpOp: icmp,
    llvm.SelectOp: all_operands("select"),
    llvm.InsertElementOp: all_operands("insertelement"),
    llvm.ShuffleVectorOp: shuffle,
    llvm.FMAOp: fma,
    llvm.CallIntrinsicOp: lambda p, op, v: p.intrinsic(op, op.properties["intrin"].data),
    llvm.CallOp: lambda p, op, v: p.call(op, op.properties["callee"].string_value()),
    llvm.GEPOp: getelementptr,
    llvm.AllocaOp: lambda p, op, v: (
        f"alloca {p.type(op.elem_type)}, {p.typed[v[0]]}, {aligned(op)}"
    ),
    llvm.LoadOp: lambda p, op, v: (
        f"load {p.type(op.results[0].type)}, {p.typed[v[0]]}, {aligned(op)}"
    ),
    llvm.StoreOp: lambda p, op, v: f"store {p.typed[v[0]]}, {p.typed[v[1]]}, {aligned(op)}",
    llvm.BrOp: lambda p, op, v: f"br label %{p.labels[op.successor]}",
    llvm.CondBrOp: lambda p, op, v: (
        f"br {p.typed[v[0]]}, label %{p.labels[op.then_block]}, label %{p.labels[op.else_block]}"
    ),
    llvm.ReturnOp: lambda p, op, v: f"ret {p.typed[v[0]] if v else 'void'}",
}
