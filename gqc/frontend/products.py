"""Whether a module's forward is the product of a linear layer and nothing else, by tracing it."""

from __future__ import annotations

import inspect
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten

ROWS = ((3,), (3, 5))
"""Leading sizes of the inputs that are traced."""
SAME = {aten.view, aten._unsafe_view, aten.reshape, aten.alias, aten.detach, aten.clone}
"""Operations that give all elements of their first operand in the same order."""
SWAPS = {aten.t, aten.numpy_T, aten.transpose, aten.permute}
"""Operations that transpose, if their operand is a matrix and changes at all."""

USUAL = frozenset(vars(nn.Linear(1, 1, device="meta")))
"""Attributes that every linear layer has."""
ALIKE: WeakKeyDictionary[type, dict[tuple, bool]] = WeakKeyDictionary()
"""Of a class, which choices make it a product."""

X, W, WT, B, XW, XWB = "x", "weight", "transposed weight", "bias", "product", "product and bias"


def forward_name(module: nn.Module) -> str | None:
    """The name of the one input that a module's forward takes, None if it takes others."""
    parameters = [*inspect.signature(type(module).forward).parameters.values()][1:]
    by_name = [p for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    return by_name[0].name if len(by_name) == len(parameters) == 1 else None


def is_product(module: nn.Linear) -> bool:
    """Whether a layer computes x · Wᵀ + b in evaluation, for x of any rank, and nothing else.

    Its forward is traced on fake tensors, and each operation must be one that a linear layer is
    made of. What cannot be traced, as it depends on values, is something else.
    """
    if type(module).__call__ is not nn.Module.__call__ or forward_name(module) is None:
        return False
    if type(module).forward is nn.Linear.forward:
        return True
    known = ALIKE.setdefault(type(module), {})
    key = choices(module)
    if key is None:
        return computes_product(module)
    if key not in known:
        known[key] = computes_product(module)
    return known[key]


def choices(module: nn.Linear) -> tuple | None:
    """What a forward may depend on besides tensors and sizes; None where that is not known."""
    own = {k: v for k, v in vars(module).items() if k not in USUAL}
    if not all(isinstance(v, int | float | str | bool | None) for v in own.values()):
        return None
    return module.bias is None, module.weight.dtype, *sorted(own.items())


def computes_product(module: nn.Linear) -> bool:
    """Whether the graph of a layer's forward is that of a linear layer."""
    training, module.training = module.training, False
    try:
        return all(is_linear_graph(traced(module, rows), module, rows) for rows in ROWS)
    except Exception:  # whatever a forward of someone else's raises
        return False
    finally:
        module.training = training


def traced(module: nn.Linear, rows: tuple[int, ...]) -> fx.GraphModule:
    """The graph of a layer's forward on x [*rows, K], its weight and its bias, in this order."""
    given = {n: torch.empty_like(p, device="meta") for n, p in module.named_parameters()}
    names = [name for name in ("weight", "bias") if name in given]
    tensors = [given[name] for name in names]

    def forward(x: Tensor, *tensors: Tensor) -> Any:
        return torch.func.functional_call(module, dict(zip(names, tensors, strict=True)), (x,))

    x = torch.empty(*rows, module.in_features, dtype=module.weight.dtype, device="meta")
    with torch.no_grad():
        return make_fx(forward, tracing_mode="fake")(x, *tensors)


def is_linear_graph(graph: fx.GraphModule, module: nn.Linear, rows: tuple[int, ...]) -> bool:
    """Whether a graph of x, a weight and perhaps a bias gives their product [*rows, N]."""
    kinds: dict[Any, str | None] = {}
    inputs = iter((X, W, B))
    for node in graph.graph.nodes:
        match node.op:
            case "placeholder":
                kinds[node] = next(inputs)
            case "call_function":
                kinds[node] = kind_of(node, [kinds.get(arg) for arg in node.args])
            case "output":
                (result,) = node.args
                expected = XW if module.bias is None else XWB
                shape = (*rows, module.out_features)
                return kinds.get(result) == expected and result.meta["val"].shape == shape
            case _:
                return False
    return False


def kind_of(node: fx.Node, args: list[str | None]) -> str | None:
    """What an operation gives, by what its operands are; None of anything else."""
    op = getattr(node.target, "overloadpacket", None)
    first = args[0] if args else None
    if op in SAME and first is not None:
        return first if first not in (W, WT, B) or unchanged(node) else None
    if op in SWAPS and first in (W, WT):
        return first if unchanged(node) else {W: WT, WT: W}[first]
    if op in (aten.mm, aten.matmul) and args[:2] == [X, WT]:
        return XW
    if op is aten.linear and args[:2] == [X, W]:
        return {2: XW, 3: XWB if args[2:] == [B] else None}.get(len(args))
    if node.kwargs:  # alpha and beta
        return None
    if op is aten.addmm and args == [B, X, WT]:
        return XWB
    return XWB if op is aten.add and sorted(map(str, args)) == sorted((XW, B)) else None


def unchanged(node: fx.Node) -> bool:
    """Whether an operation leaves the sizes and strides of its first operand."""
    before, after = node.args[0], node.meta["val"]
    given: Any = before
    value = given.meta["val"]
    return value.shape == after.shape and value.stride() == after.stride()
