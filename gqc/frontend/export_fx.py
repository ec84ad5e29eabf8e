"""From IR to an `fx.GraphModule` that holds its weights and is called as the model was."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from operator import getitem
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from xdsl.dialects.builtin import (
    AnyFloat,
    DictionaryAttr,
    IntegerAttr,
    StringAttr,
    TensorType,
)
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Operation, SSAValue

from gqc.dialects.fx import CallOp, decode_argument, resolve_callee
from gqc.dialects.gq import (
    LaunchOp,
    MatmulTOp,
    RotateChannelsOp,
    TensorScaleOp,
    TransposeOp,
    WeightOp,
    element_type,
)
from gqc.dialects.torch_types import DTYPES
from gqc.errors import GqcError
from gqc.frontend.checks import check_constants, check_tensors, expected_tensor
from gqc.frontend.graph_modules import (
    GroupedQuantLinear,
    GroupedQuantModule,
    Source,
    Symbols,
    decoding_of,
)
from gqc.frontend.signature import Imported, Leaf, Signature
from gqc.runtime.ops import launch_of
from gqc.runtime.ops import register as register_launch

aten = torch.ops.aten


def export_fx(imported: Imported, function: str = "forward") -> GroupedQuantModule:
    """A graph module of one function of the IR.

    Weights are registered under their names, tied ones under their aliases too: parameters as
    parameters, the rest as buffers; names below the function's own are relative to it. With a
    signature the module takes and returns the pytrees of the original model and checks its inputs;
    without one it takes the function's arguments and returns its results. Results that mutate are
    copied to their buffers or arguments.

    Raises GqcError on an op that torch does not run: export the imported or the kernels stage.
    """
    return export_functions(imported, [function])[function]


def export_functions(imported: Imported, functions: Iterable[str]) -> dict[str, GroupedQuantModule]:
    """Graph modules of several functions of the IR by name; see `export_fx`."""
    symbols = Symbols.of(imported.module)
    return {function: export_function(imported, symbols, function) for function in functions}


def export_function(imported: Imported, symbols: Symbols, name: str) -> GroupedQuantModule:
    """The graph module of one function, given the module's symbols; see `export_fx`."""
    if name not in symbols.functions:
        raise GqcError(f"no function {name} in the IR: it has {', '.join(symbols.functions)}")
    exporter = Exporter(imported, symbols, name)
    module = exporter.graph_module()
    module._source = Source(replace(imported, weights={}), symbols, name, exporter.names)
    return module


def restore(source: Source, weights: dict[str, torch.Tensor]) -> GroupedQuantModule:
    """A graph module from what it is pickled as, but for its state."""
    imported = replace(source.imported, weights=weights)
    return export_function(imported, source.symbols, source.function)


class Exporter:
    """One walk over a function. `nodes` maps its values to nodes of the graph."""

    def __init__(self, imported: Imported, symbols: Symbols, function: str):
        self.imported = imported
        self.symbols = symbols
        self.function = symbols.functions[function]
        self.kernels = symbols.kernels
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.nodes: dict[SSAValue, fx.Node] = {}
        self.weights: dict[str, fx.Node] = {}
        self.names: dict[str, str] = {}

    def graph_module(self) -> GroupedQuantModule:
        self.export_inputs()
        for op in self.function.body.block.ops:
            emit = EMITTERS.get(type(op))
            if emit is None:
                raise GqcError(
                    f"{op.name} does not run in torch: export the imported or the kernels stage"
                )
            emit(self, op)
        signature = self.imported.signature
        if signature is not None:
            self.graph.set_codegen(_PyTreeCodeGen(pytree_info(signature)))
        root = self.root.eval()
        decoding = None
        if signature is None:
            decoding = decoding_of(self.symbols, self.function.sym_name.data, self.names)
        if decoding is None:
            return GroupedQuantModule(root, self.graph)
        if not hasattr(root, "bias"):
            root.register_parameter("bias", None)  # as a linear layer has it
        layer = GroupedQuantLinear(root, self.graph)
        layer._decoding = decoding
        return layer

    def export_inputs(self) -> None:
        """A placeholder for each leaf of the inputs, and a check of what the caller passes."""
        signature = self.imported.signature
        arguments = iter(self.function.args)
        leaves = signature.inputs if signature else (Leaf.VALUE,) * len(self.function.args)
        tensors, constants = {}, {}
        for i, leaf in enumerate(leaves):
            if leaf is not Leaf.VALUE:
                constants[self.graph.placeholder(f"constant_{i}")] = leaf
                continue
            argument = next(arguments)
            name = argument.name_hint or f"input_{i}"
            node = self.graph.placeholder(name)
            if any(other.target == name for other in self.nodes.values()):
                node.target = node.name  # the parameter's name: hints need not differ
            self.nodes[argument] = node
            if isinstance(argument.type, TensorType):
                tensors[node] = (node.name, *expected_tensor(self.function, argument))
        if signature is not None:
            self.check(check_tensors, tensors)
            self.check(check_constants, constants)

    def check(self, function: Callable[..., None], expected: dict[fx.Node, Any]) -> None:
        if expected:
            self.graph.call_function(function, (list(expected), list(expected.values())))

    def call(self, op: Operation, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Append a call; it is the value of an op with one result that is no list."""
        node = self.graph.create_node(
            "call_function", target, args, kwargs, op.results[0].name_hint if op.results else None
        )
        if len(op.results) == 1 and not returns_list(target):
            self.nodes[op.results[0]] = node
        return node

    def export_call(self, op: CallOp) -> None:
        target = resolve_callee(op.callee.data)
        operands = [self.nodes[value] for value in op.operands]
        args = decode_argument(op.args, operands)
        kwargs = {key: decode_argument(attr, operands) for key, attr in op.kwargs.data.items()}
        node = self.call(op, target, *args, **kwargs)
        if returns_list(target):
            self.unpack_results(op, node)

    def unpack_results(self, op: Operation, node: fx.Node) -> None:
        """Take the results of an op out of the list that its call returns."""
        for i, result in enumerate(op.results):
            item = self.graph.create_node(
                "call_function", getitem, (node, i), name=result.name_hint
            )
            self.nodes[result] = item

    def export_weight(self, op: WeightOp) -> None:
        self.nodes[op.result] = self.weight(op.key)

    def weight(self, name: str) -> fx.Node:
        """Node that reads a weight, which is registered when it is first read."""
        if name not in self.weights:
            fqns = self.registered_names(name)
            for fqn in fqns:
                tensor = self.imported.weights[name]
                register(self.root, fqn, tensor, name not in self.imported.transient)
            self.names[name] = fqns[0]
            self.weights[name] = self.graph.get_attr(fqns[0])
        return self.weights[name]

    def registered_names(self, name: str) -> list[str]:
        """Names of a weight in this module: relative to it if the function is a submodule."""
        names = [name, *(a for a, of in self.imported.aliases.items() if of == name)]
        prefix = f"{self.function.sym_name.data}."
        return [n.removeprefix(prefix) for n in names if n.startswith(prefix)] or names

    def export_transpose(self, op: TransposeOp) -> None:
        self.call(op, aten.t.default, self.nodes[op.source])

    def export_matmul_t(self, op: MatmulTOp) -> None:
        self.call(op, aten.linear.default, *(self.nodes[value] for value in op.operands))

    def export_launch(self, op: LaunchOp) -> None:
        key = register_launch(launch_of(op, self.kernels))
        inputs = [self.nodes[value] for value in op.inputs]
        if not op.parts:
            self.unpack_results(op, self.call(op, torch.ops.gqc.quantize.default, inputs, key))
            return
        x, *others = inputs
        parts = [self.nodes[part] for part in op.parts]
        bias = self.nodes[op.bias] if op.bias is not None else None
        target = torch.ops.gqc.matmul.default
        self.call(op, target, x, others, parts, bias, key, *self.sources(op.inputs[0]))

    def sources(self, x: SSAValue) -> tuple[Any, ...]:
        """What has the gradients of a matmul's x, where that is codes, and what quantized it."""
        quantizer = x.owner
        if isinstance(element_type(x), AnyFloat) and DTYPES[element_type(x)].itemsize > 1:
            return ()
        if not isinstance(quantizer, LaunchOp):
            return ()
        key = register_launch(launch_of(quantizer, self.kernels))
        return [self.nodes[value] for value in quantizer.inputs], key

    def export_tensor_scale(self, op: TensorScaleOp) -> None:
        element = str(op.format.element)
        self.call(op, torch.ops.gqc.tensor_scale.default, self.nodes[op.source], element)

    def export_rotate(self, op: RotateChannelsOp) -> None:
        self.call(op, torch.ops.gqc.rotate.default, self.nodes[op.source], op.block.value.data)

    def export_return(self, op: ReturnOp) -> None:
        """Copy what mutates, return the rest."""
        seen = []
        for value, attrs in zip(op.arguments, result_attributes(self.function), strict=True):
            target = self.written(attrs)
            if target is None:
                seen.append(self.nodes[value])
            else:
                self.graph.call_function(aten.copy_.default, (target, self.nodes[value]))
        signature = self.imported.signature
        if signature is not None:
            results = iter(seen)
            seen = [next(results) if o is Leaf.VALUE else o for o in signature.outputs]
            self.graph.output(seen)
        else:
            self.graph.output(seen[0] if len(seen) == 1 else tuple(seen))

    def written(self, attrs: DictionaryAttr) -> fx.Node | None:
        """The buffer or argument that a result is the new content of."""
        match attrs.data.get("fx.mutates", attrs.data.get("fx.mutates_argument")):
            case StringAttr() as fqn:
                return self.weight(fqn.data)
            case IntegerAttr() as index:
                return self.nodes[self.function.args[index.value.data]]
        return None


EMITTERS: dict[type[Operation], Callable[[Exporter, Any], None]] = {
    CallOp: Exporter.export_call,
    WeightOp: Exporter.export_weight,
    TransposeOp: Exporter.export_transpose,
    MatmulTOp: Exporter.export_matmul_t,
    LaunchOp: Exporter.export_launch,
    TensorScaleOp: Exporter.export_tensor_scale,
    RotateChannelsOp: Exporter.export_rotate,
    ReturnOp: Exporter.export_return,
}


def result_attributes(function: FuncOp) -> list[DictionaryAttr]:
    """Attributes of each result of a function."""
    if function.res_attrs is not None:
        return list(function.res_attrs)
    return [DictionaryAttr({})] * len(function.function_type.outputs)


def returns_list(target: Callable[..., Any]) -> bool:
    """Whether a callee returns a list or a tuple, be it of one item."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    returns = target._schema.returns
    return len(returns) > 1 or any(isinstance(r.type, torch.ListType) for r in returns)


def register(root: nn.Module, fqn: str, tensor: torch.Tensor, persistent: bool) -> None:
    """Register a tensor under its qualified name, with plain modules for the path to it."""
    *path, leaf = fqn.split(".")
    module = root
    for name in path:
        if not hasattr(module, name):
            module.add_module(name, nn.Module())
        module = getattr(module, name)
    if not isinstance(module, nn.Module) or hasattr(module, leaf):
        raise GqcError(f"weight {fqn} cannot be registered: a part of its name is taken")
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(leaf, tensor)
    else:
        module.register_buffer(leaf, tensor, persistent=persistent)


def pytree_info(signature: Signature) -> _PyTreeInfo:
    return _PyTreeInfo(list(signature.names), signature.in_spec, signature.out_spec)
