"""Small modules with linears, and what they must compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from gqc.dialects.text import parse_ir
from gqc.driver.materialize import Observer, Store, materialize
from gqc.passes.pipeline import Stage, extend, pipeline

SPELLINGS = {
    # How torch spells x · Wᵀ (+ b): the shape of the weight, and the call with and without a bias.
    "linear": ("{n}x{k}", "", '"aten.linear.default"(%x, %w)', '"aten.linear.default"(%x, %w, %b)'),
    "conv1d": ("{k}x{n}", "", '"aten.mm.default"(%x, %w)', '"aten.addmm.default"(%b, %x, %w)'),
    "decomposed": (
        "{n}x{k}",
        '%t = fx.call "aten.t.default"(%w) : (tensor<{n}x{k}x{f}>) -> tensor<{k}x{n}x{f}>',
        '"aten.mm.default"(%x, %t)',
        '"aten.addmm.default"(%b, %x, %t)',
    ),
}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@pytest.fixture(scope="session")
def linear() -> Callable[..., ModuleOp]:
    """A module of one linear layer, `fc`, on x [*, K]."""

    def make(
        n: int,
        k: int,
        f: str = "f32",
        bias: bool = False,
        spelling: str = "linear",
        lead: str = "?",
    ) -> ModuleOp:
        weight, before, plain, with_bias = (s.format(n=n, k=k, f=f) for s in SPELLINGS[spelling])
        w = f"{k}x{n}" if before else weight
        types = {"%x": f"tensor<{lead}x{k}x{f}>", "%w": f"tensor<{weight}x{f}>"}
        types |= {"%t": f"tensor<{w}x{f}>", "%b": f"tensor<{n}x{f}>"}
        call = with_bias if bias else plain
        operands = call[call.index("(") + 1 : -1].split(", ")
        return parse_ir(f"""
        func.func @forward(%x : {types["%x"]}) -> tensor<{lead}x{n}x{f}> {{
          %w = gq.weight @fc.weight : {types["%w"]}
          {f"%b = gq.weight @fc.bias : {types['%b']}" if bias else ""}
          {before}
          %y = fx.call {call} : ({", ".join(types[o] for o in operands)}) -> tensor<{lead}x{n}x{f}>
          func.return %y : tensor<{lead}x{n}x{f}>
        }}
        """)

    return make


@pytest.fixture(scope="session")
def weights() -> Callable[..., dict[str, torch.Tensor]]:
    """The store of that module."""

    def make(n: int, k: int, f: str = "f32", bias: bool = False, spelling: str = "linear") -> dict:
        generator = torch.Generator().manual_seed(n * 1000 + k)
        weight = (torch.randn(n, k, generator=generator) + 0.3) * 0.1
        store = {"fc.weight": weight.t().contiguous() if spelling == "conv1d" else weight}
        if bias:
            store["fc.bias"] = torch.randn(n, generator=generator)
        return {name: tensor.to(DTYPES[f]) for name, tensor in store.items()}

    return make


@dataclass(frozen=True)
class Materialize(ModulePass):
    """Weights are computed into a store."""

    name = "materialize"

    store: Store
    observe: Observer

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        materialize(op, self.store, self.observe)


@pytest.fixture(scope="session")
def stages_over() -> Callable[..., tuple[Stage, ...]]:
    """The stages of a compilation that computes weights into a store."""

    def make(
        store: Store, target: str, *schemes: str, observe: Observer = lambda *seen: None
    ) -> tuple[Stage, ...]:
        return extend(pipeline(schemes, target), {"kernels": [Materialize(store, observe)]})

    return make


@pytest.fixture(scope="session")
def apply() -> Callable[[ModuleOp, ModulePass], None]:
    """Run one pass and verify what it leaves."""

    def run(module: ModuleOp, pass_: ModulePass) -> None:
        pass_.apply(Context(), module)
        module.verify()

    return run
