"""The linear layers of a model one by one, for a model that stays what it is around them.

Each layer becomes a function of one IR module, named by its path, so that the same passes serve;
what they make of it takes the layer's place in the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import nn
from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    ArrayAttr,
    DictionaryAttr,
    ModuleOp,
    StringAttr,
    TensorType,
)
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Block, Region

from gqc.dialects.fx import call
from gqc.dialects.gq import WeightOp, element_type, tensor_shape
from gqc.dialects.torch_types import tensor_type
from gqc.errors import GqcError
from gqc.frontend.locations import location
from gqc.frontend.signature import Imported, canonical_names


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D: a linear layer whose weight is [K, N]."""
    return (type(module).__module__, type(module).__name__) == (
        "transformers.pytorch_utils",
        "Conv1D",
    )


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of a model by path, each module once.

    Warns of subclasses of `nn.Linear`: their forward, or their user, may do something else.
    """
    modules = dict(model.named_modules())
    subclasses = [
        f"{path} ({type(m).__name__})"
        for path, m in modules.items()
        if isinstance(m, nn.Linear) and type(m) is not nn.Linear
    ]
    if subclasses:
        warnings.warn(
            f"left as they are, being subclasses of nn.Linear: {', '.join(subclasses)}; "
            "with example inputs the model is captured whole",
            stacklevel=3,
        )
    return {path: m for path, m in modules.items() if type(m) is nn.Linear or is_conv1d(m)}


def capture_linears(model: nn.Module) -> Imported:
    """IR with a function `@"path" (x [rows, K]) -> [rows, N]` for each linear layer of the model.

    Once linears are recognized, a graph module exported from one (`export_fx(imported, path)`)
    takes x of any rank. Weights have the names they have in the model; tied ones are one. Raises
    GqcError if there is no linear layer.
    """
    modules = linear_modules(model)
    if not modules:
        raise GqcError(f"{type(model).__name__} has no nn.Linear and no Conv1D: nothing to compile")
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    canonical = canonical_names(tensors)
    aliases = {name: first for name, first in canonical.items() if name != first}
    imported = Imported(ModuleOp([]), {}, aliases=aliases)
    for path, module in modules.items():
        names = {n: canonical[f"{path}.{n}".lstrip(".")] for n, _ in module.named_parameters()}
        imported.weights.update((name, tensors[name]) for name in names.values())
        imported.module.body.block.add_op(linear_function(path, module, names))
    return imported


def linear_function(path: str, module: nn.Module, names: Mapping[str, str]) -> FuncOp:
    """The function of one layer; `names` gives the qualified name of its weight and bias."""
    weights = {n: WeightOp(key, tensor_type(module.get_parameter(n))) for n, key in names.items()}
    for name, op in weights.items():
        op.result.name_hint = name
    weight, *bias = (op.result for op in weights.values())
    n, k = tensor_shape(weight)
    if is_conv1d(module):
        n, k = k, n
    rows, result = (TensorType(element_type(weight), (DYNAMIC_INDEX, size)) for size in (k, n))
    block = Block(arg_types=[rows])
    block.args[0].name_hint = "x" if is_conv1d(module) else "input"  # as their forward says
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
