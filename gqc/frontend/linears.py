"""The linear layers of a model one by one, for a model that stays what it is around them.

Each layer becomes a function of one IR module, named by its path, so that the same passes serve;
what they make of it takes the layer's place in the model.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping

import torch
from torch import fx, nn
from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    ArrayAttr,
    DictionaryAttr,
    ModuleOp,
    StringAttr,
    TensorType,
    UnitAttr,
)
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Block, Region

from gqc.dialects.fx import call
from gqc.dialects.gq import WeightOp, element_type, tensor_shape
from gqc.dialects.torch_types import tensor_type
from gqc.errors import GqcError
from gqc.frontend.locations import location
from gqc.frontend.prepare import prepare
from gqc.frontend.products import forward_name, is_product
from gqc.frontend.routers import ROUTERS, routers
from gqc.frontend.signature import Imported, canonical_names, share


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D: a linear layer whose weight is [K, N]."""
    return (type(module).__module__, type(module).__name__) == (
        "transformers.pytorch_utils",
        "Conv1D",
    )


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer of torch's or transformers' own, or of a subclass of
    torch's that computes the same product."""
    if type(module) is nn.Linear or is_conv1d(module):
        return True
    return isinstance(module, nn.Linear) and is_product(module)


def peculiarity(module: nn.Module) -> str | None:
    """What a linear layer does besides its product, so that nothing else can take its place."""
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        return "it has forward hooks"
    names = {name for name, _ in module.named_parameters()}
    if not {"weight"} <= names <= {"weight", "bias"}:
        return f"it has {', '.join(names)}"
    # Another class may do something else in its forward.
    return None if is_linear(module) else type(module).__name__


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of a model by path, each module once.

    Warns of those that do something else too: subclasses, layers with hooks or parametrizations.
    """
    modules = {
        path: module
        for path, module in model.named_modules()
        if is_conv1d(module)
        or (isinstance(module, nn.Linear) and not isinstance(module, fx.GraphModule))  # compiled
    }
    read = {m.out_proj for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    left = {path: reason for path, m in modules.items() if (reason := peculiarity(m))}
    left |= {p: "MultiheadAttention reads its weight" for p, m in modules.items() if m in read}
    if left:
        warnings.warn(
            "left as they are, being no plain nn.Linear: "
            f"{', '.join(f'{path} ({reason})' for path, reason in left.items())}; "
            "with example inputs the model is captured whole",
            stacklevel=3,
        )
    return {path: module for path, module in modules.items() if path not in left}


def copy_shared(model: nn.Module) -> nn.Module:
    """A copy of a model in evaluation mode, its tensors new objects on the same storage.

    What else the model has of linear layers is such layers in it (`gqc.frontend.prepare`).
    """
    plain = [t for m in model.modules() for t in vars(m).values() if isinstance(t, torch.Tensor)]
    computed = [tensor for tensor in plain if not tensor.is_leaf]  # deepcopy refuses these
    tensors = (*model.parameters(), *model.buffers(), *computed)
    new = copy.deepcopy(model, memo={id(tensor): share(tensor) for tensor in tensors})
    new.eval()
    prepare(new)
    return new


def capture_linears(model: nn.Module) -> Imported:
    """IR with a function `@"path" (x [rows, K]) -> [rows, N]` for each linear layer of the model.

    Once linears are recognized, a graph module exported from one (`export_fx(imported, path)`)
    takes x of any rank. Weights have the names they have in the model; tied ones are one, and a
    `gq.weight` that other modules read too is marked `shared`. Raises GqcError if there is no
    linear layer.
    """
    modules = linear_modules(model)
    if not modules:
        raise GqcError(
            f"{type(model).__name__} has no plain nn.Linear and no Conv1D: nothing to compile"
        )
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    canonical = canonical_names(tensors)
    aliases = {name: first for name, first in canonical.items() if name != first}
    imported = Imported(ModuleOp([]), {}, aliases=aliases)
    linears = set(modules.values())
    shared = {
        canonical[name]
        for name in tensors
        if model.get_submodule(name.rpartition(".")[0]) not in linears
    }
    choosing = {canonical[name] for name in routers({n: t.shape for n, t in tensors.items()})}
    inside = {f"{path}.weight" for path in modules}
    apart = sorted(name.removesuffix(".weight") for name in choosing - inside)
    if apart:
        imported.module.attributes[ROUTERS] = ArrayAttr(map(StringAttr, apart))
    for path, module in modules.items():
        names = {
            leaf: canonical[f"{path}.{leaf}".lstrip(".")]
            for leaf in ("weight", "bias")
            if getattr(module, leaf) is not None
        }
        imported.weights.update((name, tensors[name]) for name in names.values())
        function = linear_function(path, module, names)
        for op in function.body.ops:
            if isinstance(op, WeightOp) and op.key in shared:
                op.attributes["shared"] = UnitAttr()
            if isinstance(op, WeightOp) and op.key in choosing:
                op.attributes["router"] = UnitAttr()
        imported.module.body.block.add_op(function)
    return imported


def linear_function(path: str, module: nn.Module, names: Mapping[str, str]) -> FuncOp:
    """The function of one layer; `names` gives the names of its weight and its bias, if any."""
    weights = {n: WeightOp(key, tensor_type(module.get_parameter(n))) for n, key in names.items()}
    for name, op in weights.items():
        op.result.name_hint = name
    weight, *bias = (op.result for op in weights.values())
    n, k = tensor_shape(weight)
    if is_conv1d(module):
        n, k = k, n
    rows, result = (TensorType(element_type(weight), (DYNAMIC_INDEX, size)) for size in (k, n))
    block = Block(arg_types=[rows])
    block.args[0].name_hint = forward_name(module)
    x = block.args[0]
    if is_conv1d(module):
        linear = call("aten.addmm.default", [*bias, x, weight], {}, [result])
    else:
        linear = call("aten.linear.default", [x, weight, *bias], {}, [result])
    ops = [*weights.values(), linear]
    for op in ops:
        op.location = location(path)
    block.add_ops([*ops, ReturnOp(linear.results[0])])
    dims = DictionaryAttr({"fx.dims": ArrayAttr([StringAttr("rows")])})
    return FuncOp(path, ([rows], [result]), Region(block), arg_attrs=ArrayAttr([dims]))


def replace_modules(model: nn.Module, replacements: Mapping[str, nn.Module]) -> None:
    """Put each module in the place of the one at its path, and wherever else that one is used."""
    new = {id(model.get_submodule(path)): module for path, module in replacements.items()}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() skips repeats
            if id(child) in new:
                setattr(parent, name, new[id(child)])
