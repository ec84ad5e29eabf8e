"""Linear layers as IR, compiled to kernels without weights."""

from __future__ import annotations

from xdsl.dialects.builtin import ModuleOp

from gqc.dialects.text import parse_ir
from gqc.passes.pipeline import pipeline, run_stages

PRODUCERS = {
    "": "",
    "norm": '%h = fx.call "aten.rms_norm.default"(%x, [{k}], %g) : ({x}, {g}) -> {x}',
    "silu": """%s = fx.call "aten.silu.default"(%x) : ({x}) -> {x}
      %h = fx.call "aten.mul.Tensor"(%s, %up) : ({x}, {x}) -> {x}""",
}
"""What computes the input %h of a layer, by name; without one it is %x."""


def layer(
    n: int,
    k: int,
    scheme: str,
    target: str,
    element: str = "bf16",
    bias: bool = False,
    producer: str = "",
) -> ModuleOp:
    """The module of a layer [N, K] at the stage `kernels`."""
    names = {"k": k, "x": f"tensor<?x{k}x{element}>", "g": f"tensor<{k}x{element}>"}
    b, w, y = (f"tensor<{shape}x{element}>" for shape in (n, f"{n}x{k}", f"?x{n}"))
    module = parse_ir(f"""
    func.func @forward(%x : {names["x"]}, %up : {names["x"]}, %g : {names["g"]}, %b : {b})
        -> {y} {{
      %w = gq.weight @weight : {w}
      {PRODUCERS[producer].format(**names)}
      %y = gq.matmul_t %{"h" if producer else "x"}, %w {"bias %b" if bias else ""}
        : ({names["x"]}, {w}{f", {b}" if bias else ""}) -> {y}
      func.return %y : {y}
    }}""")
    run_stages(module, pipeline((f"*={scheme}",), target))
    return module
