"""From IR to an `fx.GraphModule` that holds its weights and is called as the model was."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from operator import getitem
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from xdsl.dialects.builtin import (
    AnyFloat,
    DictionaryAttr,
    IntegerAttr,
    ModuleOp,
    StringAttr,
    TensorType,
)
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Operation, SSAValue

from gqc.dialects.fx import CallOp, decode_argument, resolve_callee
from gqc.dialects.gq import (
    LaunchOp,
    LayoutAttr,
    MatmulTOp,
    RotateChannelsOp,
    TensorScaleOp,
    TransposeOp,
    WeightOp,
    element_type,
)
from gqc.dialects.text import parse_ir, print_ir
from gqc.dialects.tile import KernelOp
from gqc.dialects.torch_types import DTYPES
from gqc.errors import GqcError
from gqc.formats.rotation import rotate
from gqc.frontend.checks import check_constants, check_tensors, expected_tensor
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


@dataclass(frozen=True)
class Symbols:
    """Functions and kernels of a module by name."""

    functions: dict[str, FuncOp]
    kernels: dict[str, KernelOp]

    @staticmethod
    def of(module: ModuleOp) -> Symbols:
        return Symbols(
            {op.sym_name.data: op for op in module.ops if isinstance(op, FuncOp)},
            {op.sym_name.data: op for op in module.ops if isinstance(op, KernelOp)},
        )


def export_function(imported: Imported, symbols: Symbols, name: str) -> GroupedQuantModule:
    """The graph module of one function, given the module's symbols; see `export_fx`."""
    if name not in symbols.functions:
        raise GqcError(f"no function {name} in the IR: it has {', '.join(symbols.functions)}")
    exporter = Exporter(imported, symbols, name)
    module = exporter.graph_module()
    module._source = Source(replace(imported, weights={}), symbols, name, exporter.names)
    return module


@dataclass(frozen=True, eq=False)
class Source:
    """What a graph module was made of: a function of the IR, and the model without its weights."""

    imported: Imported
    symbols: Symbols
    function: str
    names: dict[str, str]
    """Where the module has each weight."""

    def __deepcopy__(self, memo: dict) -> Source:
        return self

    def __reduce__(self) -> tuple:
        text = print_ir(part_of(self.symbols, self.function))
        rest = replace(self.imported, module=ModuleOp([]))
        return Source.restore, (text, rest, self.function, self.names)

    @staticmethod
    def restore(text: str, imported: Imported, function: str, names: dict[str, str]) -> Source:
        module = parse_ir(text)
        return Source(replace(imported, module=module), Symbols.of(module), function, names)


def part_of(symbols: Symbols, function: str) -> ModuleOp:
    """A module of one function and the kernels that it launches."""
    part = symbols.functions[function]
    launches = [op for op in part.walk() if isinstance(op, LaunchOp)]
    names = dict.fromkeys(name for op in launches for _, name in op.buckets)
    return ModuleOp([part.clone(), *(symbols.kernels[name].clone() for name in names)])


REGISTRIES = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")
"""Where a module has its tensors and submodules."""


class GroupedQuantModule(fx.GraphModule):
    """A graph module that is copied with its attributes, and pickled as its IR and weights."""

    _source: Source

    def __init__(self, root: Any, graph: fx.Graph, class_name: str = "GroupedQuantModule"):
        super().__init__(root, graph, class_name)
        for registry in REGISTRIES:  # torch takes what the graph reads, and of that not all
            vars(self)[registry].update(vars(root)[registry])
        for name, value in vars(root).items():
            self.__dict__.setdefault(name, value)

    def _deepcopy_init(self) -> Callable[..., None]:
        return GroupedQuantModule.__init__

    def __reduce__(self) -> tuple:
        weights = {name: tensor_of(self, fqn) for name, fqn in self._source.names.items()}
        attributes = {k: v for k, v in vars(self).items() if k not in usual_attributes()}
        return restore, (self._source, weights, attributes)


class GroupedQuantLinear(GroupedQuantModule):
    """In the place of a linear layer: others may read its weight, as they read that layer's."""

    @property
    def weight(self) -> torch.Tensor:
        """The weight that the codes stand for, in the dtype of the activations.

        [N, K]; [K, N] in the place of a Conv1D. It is computed at each access, which is slow.
        """
        found = matmul_of(self._source.symbols.functions[self._source.function])
        assert found is not None
        launch, changes = found
        packed, layout = launch.attributes["packed"], launch.attributes["layout"]
        assert isinstance(packed, TensorType) and isinstance(layout, LayoutAttr)
        keys = [part.owner.key for part in launch.parts if isinstance(part.owner, WeightOp)]
        parts = [self.stored(key) for key in keys]
        dtype = DTYPES[element_type(launch.outputs[0])]
        weight = layout.row.unpack(parts, packed.get_element_type(), packed.get_shape())
        dense = weight.dequantize()
        for op in changes:
            keys = [value.owner.key for value in op.operands if isinstance(value.owner, WeightOp)]
            dense = CHANGES[change_name(op)](dense, op, *map(self.stored, keys))
        return (dense.t() if hasattr(self, "nf") else dense).to(dtype)

    def stored(self, key: str) -> torch.Tensor:
        """A tensor by the name that the IR has for it."""
        return tensor_of(self, self._source.names[key])


CHANGES: dict[str, Callable[..., torch.Tensor]] = {
    "aten.mul.Tensor": lambda w, op, factor: w * factor,
    "aten.div.Tensor": lambda w, op, factor: w / factor,
    "aten.index_select.default": lambda w, op, order: w[:, order.argsort()],
    "aten._to_copy.default": lambda w, op: w,
    "gq.rotate_channels": lambda w, op: rotate(w, op.block.value.data),
}
"""What a layer's weight is where its input goes through this before it meets the weight w."""


def change_name(op: Operation) -> str:
    return op.callee.data if isinstance(op, CallOp) else op.name


def matmul_of(function: FuncOp) -> tuple[LaunchOp, list[Operation]] | None:
    """The launch of a packed weight, where a function is nothing but one on its argument.

    Activations may be quantized on the way, and their channels changed before: by the operations
    that are given too, last first.
    """
    returned = function.get_return_op()
    match [value.owner for value in returned.arguments] if returned else []:
        case [LaunchOp() as launch] if "packed" in launch.attributes:
            sources, changes = set(launch.inputs), []
            for op in reversed(function.body.block.ops):
                if not sources & set(op.results) or isinstance(op, WeightOp):
                    continue
                if change_name(op) in CHANGES:
                    changes.append(op)
                elif not isinstance(op, LaunchOp | TensorScaleOp):
                    return None
                sources = sources - set(op.results) | set(op.operands)
            inputs = {s for s in sources if not isinstance(s.owner, WeightOp)}
            return (launch, changes) if inputs == set(function.args) else None
    return None


def tensor_of(module: nn.Module, fqn: str) -> torch.Tensor:
    """A parameter or buffer by its qualified name."""
    path, _, leaf = fqn.rpartition(".")
    return getattr(module.get_submodule(path), leaf)


@cache
def usual_attributes() -> frozenset[str]:
    """Attributes that every graph module of ours has."""
    return frozenset(vars(GroupedQuantModule(nn.Module(), fx.Graph()))) | {"_source"}


def restore(
    source: Source, weights: dict[str, torch.Tensor], attributes: dict[str, Any]
) -> GroupedQuantModule:
    """A graph module from what it is pickled as."""
    imported = replace(source.imported, weights=weights)
    module = export_function(imported, source.symbols, source.function)
    vars(module).update(attributes)
    return module


class Exporter:
    """One walk over a function. `nodes` maps its values to nodes of the graph."""

    def __init__(self, imported: Imported, symbols: Symbols, function: str):
        self.imported = imported
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
        is_layer = signature is None and matmul_of(self.function) is not None
        if is_layer and not hasattr(self.root, "bias"):
            self.root.register_parameter("bias", None)  # as a linear layer has it
        kind = GroupedQuantLinear if is_layer else GroupedQuantModule
        return kind(self.root.eval(), self.graph)

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
            node = self.graph.placeholder(argument.name_hint or f"input_{i}")
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
