"""Linear layers that read one activation, and the parameters that absorb a change of its channels.

For calibration, before any factor is known: symbolic operations are put on the inputs of a model's
layers, `fold-channels` moves them, and what it left on the parameters is read off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, TensorType, f32, i64
from xdsl.ir import Block, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq
from gqc.dialects.gq_channels import ByVector, reason_of
from gqc.dialects.interpret import interpreter
from gqc.frontend.capture import capture
from gqc.frontend.import_fx import import_fx
from gqc.passes.channel_paths import Leaf
from gqc.passes.fold_channels import FoldChannels, fixed_weights, insert
from gqc.passes.helpers import is_sole_reader, layer_name, matmuls, weight_of
from gqc.passes.recognize_linears import RecognizeLinears


@dataclass(frozen=True)
class Change:
    """What a vector [K] by channels does to one parameter of the model.

    name: the parameter's, the first of its names where it is tied. operation: a
    `gq.scale_channels`, which multiplies along its dimension (divides, if `inverse`; adds an
    `offset` before, and takes it away after), or a `gq.gather_channels`.
    """

    name: str
    operation: ByVector

    def apply(self, parameter: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        """The changed parameter, of the same shape and dtype.

        vector: factors, float [K], or for a permutation the order, int64 [K].
        """
        with torch.no_grad():
            run = interpreter(ModuleOp([]), {})
            return run.run_op(self.operation, (parameter.detach(), vector))[0]


@dataclass(frozen=True)
class Group:
    """Linear layers that read one activation [..., K].

    If its channels are divided by factors, the model computes the same with every `weights` and
    `producers` changed; so it does if they are permuted. The activation is then what the layers are
    to be quantized for. Where the producers cannot take it, `reason` says why, there are none, and
    the activation itself has to be divided as the model runs.
    """

    layers: tuple[str, ...]
    channels: int
    weights: tuple[Change, ...]
    producers: tuple[Change, ...] = ()
    reason: str = ""


KINDS: dict[str, tuple[Callable[..., ByVector], Callable[..., ByVector], Any]] = {
    "scale": (
        lambda x, factor, dim: gq.ScaleChannelsOp(x, factor, dim, inverse=True),
        gq.ScaleChannelsOp,
        f32,
    ),
    "gather": (gq.GatherChannelsOp, gq.GatherChannelsOp, i64),
}
"""What is done to an activation, what to the columns of the weights that read it, and the type of
the vector."""


def channel_groups(
    model: nn.Module,
    example_inputs: Any,
    kinds: Sequence[str] = ("scale",),
) -> dict[str, list[Group]]:
    """The groups of a model's linear layers by kind, in the order in which it calls them.

    kinds: `scale` (factors by channels) or `gather` (a permutation). The model is not changed, and
    captured at the shapes of its example: which layers read which channels depends on no other, and
    symbols for batch and sequence take three times as long. Raises GqcError as `gqc.compile` does
    on what cannot be captured.
    """
    module = import_fx(capture(model, example_inputs, dynamic_shapes={})).module
    RecognizeLinears().apply(Context(), module)
    return {kind: groups_of(module.clone(), kind) for kind in kinds}


def groups_of(module: ModuleOp, kind: str = "scale") -> list[Group]:
    """The groups of a module whose linears are recognized. It is left changed: the vector of group
    i is `gq.weight @channels.i`, and what was computed is the same whatever it holds."""
    readers: dict[SSAValue, list[gq.MatmulTOp]] = {}
    for matmul in matmuls(module):
        if weight_of(matmul.x) is None:
            readers.setdefault(matmul.x, []).append(matmul)
    fixed = fixed_weights(module)
    groups = [
        insert_change(x, layers, f"channels.{i}", kind, fixed)
        for i, (x, layers) in enumerate(readers.items())
    ]
    of_layers = {change.operation for group in groups for change in group.weights}
    FoldChannels().apply(Context(), module)
    found = {f"channels.{i}": group for i, group in enumerate(groups)}
    for op in module.walk():
        if not isinstance(op, ByVector) or op in of_layers:
            continue
        vector, weight = op.operands[1].owner, weight_of(op.source)
        assert isinstance(vector, gq.WeightOp)
        group = found[vector.key]
        if weight is None:
            found[vector.key] = replace(group, reason=reason_of(op))
        else:
            producers = (*group.producers, Change(weight.key, op))
            found[vector.key] = replace(group, producers=producers)
    return list(found.values())


def insert_change(
    x: SSAValue, layers: list[gq.MatmulTOp], name: str, kind: str, fixed: dict[str, str]
) -> Group:
    """Change an activation by a vector, and undo it in the weights of the layers that read it."""
    of_activation, of_weight, element = KINDS[kind]
    names = tuple(dict.fromkeys(map(layer_name, layers)))
    axis = len(gq.tensor_shape(x)) - 1
    channels = gq.tensor_shape(x)[axis]
    for layer in layers:
        weight = weight_of(layer.weight)
        assert weight is not None
        reason = fixed.get(weight.key)
        if reason is None and not is_sole_reader(layer.weight):
            reason = f"{weight.key} is read elsewhere too"
        if reason is not None:
            return Group(names, channels, (), reason=reason)
    vector = gq.WeightOp(name, TensorType(element, [channels]))
    block = layers[0].parent
    assert block is not None
    Rewriter.insert_op(vector, InsertPoint.at_start(block))
    change, undo = of_activation(x, vector.result, axis), of_weight(x, vector.result, axis)
    after = InsertPoint.after(vector if isinstance(x.owner, Block) else x.owner)
    Rewriter.insert_op(change, after)
    changed = []
    for layer in layers:
        layer.operands[0] = change.result
        weight = weight_of(layer.weight)
        assert weight is not None
        changed.append(Change(weight.key, insert(Leaf(layer, 1, 1), undo)))
    undo.erase()
    return Group(names, channels, tuple(changed))
