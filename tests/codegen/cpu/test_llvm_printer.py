"""LLVM assembly that is printed: as of xDSL's own backend, and numbers exactly."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from llvmlite import binding
from xdsl.backend.llvm.convert import convert_module
from xdsl.dialects import llvm
from xdsl.dialects.builtin import FloatAttr, ModuleOp, f32, f64
from xdsl.ir import Attribute
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.codegen.cpu import jit
from gqc.codegen.cpu.emitter import PTR
from gqc.codegen.cpu.isa import ISAS
from gqc.codegen.cpu.llvm_printer import print_module, symbol, value_text
from gqc.codegen.cpu.lowering import lower
from gqc.codegen.cpu.threads import function
from gqc.errors import GqcError


def by_xdsl(module: ModuleOp) -> str:
    """Of xDSL's backend: llvmlite types what alloca returns, and a cast makes it a pointer."""
    for op in [op for op in module.walk() if isinstance(op, llvm.AllocaOp)]:
        cast = llvm.BitcastOp(op.res, PTR)
        Rewriter.insert_op(cast, InsertPoint.after(op))
        op.res.replace_uses_with_if(cast.result, lambda use, cast=cast: use.operation is not cast)
    return str(convert_module(module, fallback_target_triple=""))


@pytest.mark.parametrize("rows", [1, 16, 64])
@pytest.mark.parametrize("format_", ["ui3, zero = f16, zero_mode = rescale", "si8"])
def test_assembly_is_that_of_xdsls_backend(linear, format_, rows):
    """Which has no bf16, nor bytes of 8-bit floats: f16 scales, f16 x."""
    isa = ISAS["avx2"]
    module = lower(linear(64, 128, f"1x32 : f16 : {format_}", "f16").kernel("avx2", rows), isa)
    texts = print_module(module), by_xdsl(module)
    machine = jit.target_machine(isa)
    ours, theirs = (machine.emit_assembly(jit.optimized(text, machine)) for text in texts)
    assert ours == theirs


@example(float("inf"))
@example(-0.0)
@example(1e-45)
@given(st.floats(width=32))
def test_floats_are_printed_exactly(value):
    module = binding.parse_assembly(f"@x = global float {value_text(FloatAttr(value, f32))}")
    printed = str(module.get_global_variable("x")).split("float ")[1]
    bits = bytes.fromhex(printed[2:]) if printed.startswith("0x") else None
    (read,) = struct.unpack(">d", bits) if bits else (float(printed),)
    assert struct.pack("<f", read) == struct.pack("<f", value)


def test_names_are_escaped():
    assert symbol('a"b\\c') == '@"a\\22b\\5Cc"'


def squares(type_: Attribute, kind: Any) -> ModuleOp:
    """A function of one value, which does an op on that and itself."""
    squaring = function("f", [type_])
    block = squaring.body.block
    block.add_ops([kind(block.args[0], block.args[0]), llvm.ReturnOp()])
    return ModuleOp([squaring])


@pytest.mark.parametrize(
    ("type_", "kind", "message"),
    [(f64, llvm.FAddOp, "f64 has no LLVM type"), (f32, llvm.FRemOp, "llvm.frem has no LLVM")],
)
def test_what_kernels_do_not_have_is_refused(type_, kind, message):
    with pytest.raises(GqcError, match=message):
        print_module(squares(type_, kind))


def test_what_is_no_function_is_refused():
    with pytest.raises(GqcError, match=r"llvm\.mlir\.global has no LLVM"):
        print_module(ModuleOp([llvm.GlobalOp(f32, "x", "internal")]))
