"""What the Triton printer refuses, and how it writes Python."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gqc.codegen.triton import emit
from gqc.codegen.triton.writer import PythonWriter
from gqc.dialects.text import parse_ir
from gqc.dialects.tile import KernelOp
from gqc.errors import GqcError

COPY = """
tile.kernel @{name}(%{x}: memref<?x{n}x{element}>, %y: memref<?x{n}x{element}>) tile<16, {bn}> {{
  %c = arith.constant {bn} : index
  %c16 = arith.constant 16 : index
  %pid_m = tile.program_id 0
  %m = arith.muli %pid_m, %c16 : index
  %pid_n = tile.program_id 1
  %n = arith.muli %pid_n, %c : index
  %v = tile.load %{x}[%m, %n] : memref<?x{n}x{element}> -> vector<16x{bn}x{element}>
  {extra}
  tile.store %v, %y[%m, %n] : vector<16x{bn}x{element}>, memref<?x{n}x{element}>
}}
"""


def copy(name="copy", x="x", n=64, bn=32, element="f32", extra="") -> KernelOp:
    text = COPY.format(name=name, x=x, n=n, bn=bn, element=element, extra=extra)
    (kernel,) = parse_ir(text).ops
    assert isinstance(kernel, KernelOp)
    return kernel


def test_printed_source_is_python() -> None:
    source = emit(copy())
    compile(source, "kernel.py", "exec")
    assert "v = tl.load(" in source
    assert "def unpack_pairs" not in source, "helpers are printed only where they are used"


@pytest.mark.parametrize(
    ("name", "x"), [("class", "M"), ("launch", "tl"), ("unpack_pairs", "offs_m")]
)
def test_names_that_python_or_the_file_needs_are_not_taken(name: str, x: str) -> None:
    source = emit(copy(name, x))
    tree = compile(source, "kernel.py", "exec")
    names = [n for n in tree.co_names if n not in ("triton", "tl", "language", "jit")]
    assert len(set(names)) == len(names)
    assert source.count("def launch(") == 1


def test_tile_of_no_power_of_two_is_refused() -> None:
    with pytest.raises(GqcError, match="kernel copy: a tile of 16x48; Triton tiles extend over"):
        emit(copy(n=96, bn=48))


def test_element_type_without_a_triton_name_is_refused() -> None:
    with pytest.raises(GqcError, match="no arrays or tiles of f64"):
        emit(copy(element="f64"))


def test_op_without_an_emitter_is_refused() -> None:
    with pytest.raises(GqcError, match=r"does not print math\.sin here: it is neither .* @copy"):
        emit(copy(extra="%d = math.sin %v : vector<16x32xf32>"))


def test_array_beyond_32_bit_offsets_is_refused() -> None:
    with pytest.raises(GqcError, match="x holds more than 2147483647 elements"):
        emit(copy(n=2**31, bn=32))


def test_long_calls_have_an_argument_a_line() -> None:
    writer = PythonWriter(set())
    with writer.block("def f():"):
        writer.assign("y", f"g({'a' * 60}, (b + c) * d, mask=(e < {'f' * 40}), other=0)")
        writer.assign("z", "((a) + (b * c))")
    assert writer.text() == (
        "def f():\n"
        "    y = g(\n"
        f"        {'a' * 60},\n"
        "        (b + c) * d,\n"
        f"        mask=e < {'f' * 40},\n"
        "        other=0,\n"
        "    )\n"
        "    z = a + b * c\n"
    )


def test_names_are_unique_and_legal() -> None:
    writer = PythonWriter({"M"})
    assert [writer.fresh(h) for h in ("M", "w", "w", "2x", "a.b", "for")] == [
        *("M_1", "w", "w_1", "_2x", "a_b", "_for")
    ]


def test_backend_imports_neither_torch_nor_triton() -> None:
    code = "import sys, gqc.codegen.triton; print({'torch', 'triton', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
