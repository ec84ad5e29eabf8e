"""Block-scaled matmuls for the tests of the Triton backend: every product of the native table."""

from __future__ import annotations

import torch
from xdsl.dialects.builtin import ModuleOp, TensorType
from xdsl.parser import Parser

from gqc.dialects import gq
from gqc.dialects.text import context, parse_ir
from gqc.dialects.tile import KernelOp
from gqc.dialects.torch_types import DTYPES
from gqc.formats.block_scaled import BlockScaled
from gqc.native import NATIVE
from gqc.passes.scaled_matmul_kernel import build_scaled_matmul
from gqc.targets import Tiling

MATMUL = """
func.func @layer({arguments}, %b : tensor<{n}x{y}>) -> tensor<?x{n}x{y}> {{
  %x = gq.unpack {x_names} layout <bytes, scales = {scales}> : {x_parts} -> {x_type}
  %w = gq.unpack {w_names} layout <bytes, scales = {scales}> : {w_parts} -> {w_type}
  %y = gq.matmul_t %x, %w {bias} : ({x_type}, {w_type}{bias_type}) -> tensor<?x{n}x{y}>
  func.return %y : tensor<?x{n}x{y}>
}}
"""

Key = tuple[str, str, str, str]


def type_text(element: str, scale: str) -> str:
    block, whole = (16, ", global = f32") if scale == "f8E4M3FN" else (32, "")
    return f"!gq.block_scaled<1x{block} : {scale} : {element}{whole}>"


def module_of(key: Key, n: int, k: int, y: str, bias: bool) -> ModuleOp:
    """A module of one native matmul [?, K] by [N, K]."""
    _, x, w, scale = key
    scales = NATIVE[key].scales
    texts, operands = {}, []
    for name, element, rows in (("x", x, "?"), ("w", w, str(n))):
        type_ = parse_type(f"tensor<{rows}x{k}x{type_text(element, scale)}>")
        parts = gq.LayoutAttr("bytes", scales=scales).part_types(type_)
        names = [f"%{name}{i}" for i in range(len(parts))]
        operands += [f"{each} : {part}" for each, part in zip(names, parts, strict=True)]
        texts |= {
            f"{name}_names": ", ".join(names),
            f"{name}_parts": ", ".join(map(str, parts)),
            f"{name}_type": str(type_),
        }
    return parse_ir(
        MATMUL.format(
            **texts,
            arguments=", ".join(operands),
            n=n,
            y=y,
            scales=scales,
            bias="bias %b" if bias else "",
            bias_type=f", tensor<{n}x{y}>" if bias else "",
        )
    )


def parse_type(text: str) -> TensorType:
    type_ = Parser(context(), text).parse_type()
    assert isinstance(type_, TensorType)
    return type_


def build_scaled(
    key: Key, n: int, k: int, tiling: Tiling, y: str = "bf16", bias: bool = False
) -> KernelOp:
    """The kernel of one native product for one tiling."""
    module = module_of(key, n, k, y, bias)
    matmul = next(op for op in module.walk() if isinstance(op, gq.MatmulTOp))
    x, w = matmul.x.owner, matmul.weight.owner
    assert isinstance(x, gq.UnpackOp) and isinstance(w, gq.UnpackOp)
    sizes = (tiling.bm, tiling.bn, tiling.bk)
    schedule = gq.ScheduleAttr(tiling.rows, sizes, "before", tiling.warps, tiling.stages)
    return build_scaled_matmul("scaled_matmul", key[0], matmul, x, w, schedule)


def random_operand(element: str, scale: str, rows: int, k: int) -> BlockScaled:
    """Random finite codes, and scales of a few powers of two (E8M0) or any values (E4M3)."""
    type_ = gq.block_scaled(parse_type(f"tensor<{rows}x{k}x{type_text(element, scale)}>"))
    assert type_ is not None
    generator = torch.Generator().manual_seed(rows + k)
    values = torch.tensor(type_.format.values)
    codes = values.isfinite().nonzero()[:, 0]
    codes = codes[torch.randint(len(codes), (rows, k), generator=generator)].to(torch.uint8)
    shape = (rows, k // type_.block_of((rows, k))[1])
    exponent = torch.randint(-3, 4, shape, generator=generator)
    scales = torch.randint(1, 0x7F, shape, generator=generator, dtype=torch.uint8)
    if scale == "f8E8M0FNU":
        scales = (exponent + 127).to(torch.uint8)
    whole = torch.tensor(0.0078125) if type_.has_tensor_scale else None
    return BlockScaled(type_, codes, scales.view(DTYPES[type_.scale]), None, whole)


def arrays_of(
    key: Key, x: BlockScaled, w: BlockScaled, y: torch.dtype, bias: bool = False
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """A kernel's arguments, the last filled with NaN, and the bias or zeros."""
    row = gq.LayoutAttr("bytes", scales=NATIVE[key].scales).row
    n = len(w.codes)
    b = torch.randn(n, generator=torch.Generator().manual_seed(n)).to(y) * bias
    out = torch.full((len(x.codes), n), torch.nan, dtype=y)
    return [*row.pack(x, 1), *row.pack(w, 1), *([b] if bias else []), out], b


def excess(y: torch.Tensor, x: BlockScaled, w: BlockScaled, bias: torch.Tensor) -> float:
    """The largest error in units of what float32 sums and the rounding of y may cost."""
    left, right = x.dequantize(torch.float64), w.dequantize(torch.float64)
    expected = left @ right.T + bias.double()
    magnitude = left.abs() @ right.abs().T + bias.double().abs()
    unit = torch.finfo(y.dtype).eps / 2
    bound = unit * expected.abs() + (left.shape[1] + 4) * 2.0**-24 * magnitude
    error = (y.double() - expected).abs() / bound.clamp(min=2.0**-126)
    return float(error.nan_to_num(nan=torch.inf).max())
