"""From an exported program to IR: one `func.func @forward` of `fx.call` and `gq.weight`.

Arguments are the inputs that are tensors or symbolic numbers, with the names of their dynamic
dimensions in `fx.dims`. Results are the outputs, then what the program writes: a result with
`fx.mutates = "fqn"` is the new content of a buffer, one with `fx.mutates_argument = i` that of
argument i.
"""

from __future__ import annotations

import re
from copy import deepcopy
from operator import getitem
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
)
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree
from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    ArrayAttr,
    DictionaryAttr,
    IntegerAttr,
    ModuleOp,
    StringAttr,
    TensorType,
    UnitAttr,
    i64,
)
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Attribute, Block, Region, SSAValue

from gqc.dialects.fx import call, resolve_callee
from gqc.dialects.gq import WeightOp
from gqc.dialects.torch_types import extent, value_type
from gqc.errors import GqcError
from gqc.frontend.locations import location
from gqc.frontend.routers import routers
from gqc.frontend.signature import Imported, Leaf, Signature, canonical_names, share

WEIGHT_KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
MUTATION_KINDS = (
    OutputKind.BUFFER_MUTATION,
    OutputKind.PARAMETER_MUTATION,
    OutputKind.USER_INPUT_MUTATION,
)
STATED_BY_TYPES = torch.ops.aten._assert_tensor_metadata.default
"""An assertion on dtype and device that tracing leaves behind: the types say it already."""


def import_fx(program: ExportedProgram) -> Imported:
    """IR of an exported, decomposed program (`gqc.frontend.capture.capture`).

    Raises GqcError on what the IR cannot express: higher-order ops, arguments or values that are
    neither tensors nor numbers.
    """
    importer = Importer(program)
    importer.import_graph()
    return Imported(
        ModuleOp([importer.function()]),
        importer.weights,
        importer.signature(),
        importer.aliases(),
        frozenset(importer.weights) - program.state_dict.keys(),
    )


class Importer:
    """One walk over the graph of a program. `values` maps its nodes to values of the IR."""

    def __init__(self, program: ExportedProgram):
        self.program = program
        self.block = Block()
        self.values: dict[fx.Node, Any] = {}
        self.weights: dict[str, torch.Tensor] = {}
        self.weight_values: dict[str, SSAValue] = {}
        self.weight_names: dict[str, str] = {}
        """Canonical fqn of each placeholder that is a weight."""
        self.arguments: list[str] = []
        self.arg_attrs: list[DictionaryAttr] = []
        self.res_attrs: list[DictionaryAttr] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.dimensions = DimensionNames()
        self.tensors = {**program.state_dict, **program.constants}
        tensors = {k: t for k, t in self.tensors.items() if isinstance(t, torch.Tensor)}
        self.canonical = canonical_names(tensors)
        found = routers({name: tensor.shape for name, tensor in tensors.items()})
        self.routers = {self.canonical[name] for name in found}

    def import_graph(self) -> None:
        signature = self.program.graph_signature
        input_specs = iter(signature.input_specs)
        for node in self.program.graph.nodes:
            match node.op:
                case "placeholder":
                    self.import_input(node, next(input_specs))
                case "call_function":
                    self.import_call(node)
                case "output":
                    self.import_outputs(node, signature.output_specs)
                case "get_attr":
                    pass  # a subgraph: its user, a higher-order op, is refused

    def import_input(self, node: fx.Node, spec: InputSpec) -> None:
        if spec.kind in WEIGHT_KINDS:
            assert spec.target is not None
            self.weight_names[node.name] = self.canonical[spec.target]
        elif spec.kind is not InputKind.USER_INPUT:
            raise GqcError(f"input {node.name} is a {spec.kind.name}: only tensors can be imported")
        elif isinstance(spec.arg, ConstantArgument):
            self.inputs.append(spec.arg.value)
        else:
            self.inputs.append(Leaf.VALUE)
            value = node.meta["val"]
            argument = self.block.insert_arg(self.type_of(node, value), len(self.block.args))
            argument.name_hint = node.name
            self.values[node] = argument
            self.arguments.append(node.name)
            names = self.dimensions.of(value)
            self.arg_attrs.append(DictionaryAttr({"fx.dims": names} if names.data else {}))

    def import_call(self, node: fx.Node) -> None:
        if node.target is STATED_BY_TYPES or self.is_item(node):
            return
        callee, value = callee_name(node), node.meta.get("val")
        is_list = isinstance(value, list | tuple)
        items = value if is_list else [] if value is None else [value]
        types = [self.type_of(node, item) for item in items]
        args, kwargs = map_arg((node.args, dict(node.kwargs)), self.value)
        try:
            op = call(callee, args, kwargs, types)
        except TypeError as error:
            raise GqcError(f"{describe(node)}: {error}") from error
        op.location = location(path_of(node), node.meta.get("stack_trace"))
        self.block.add_op(op)
        for result in op.results:
            result.name_hint = node.name
        self.values[node] = list(op.results) if is_list else next(iter(op.results), None)

    def is_item(self, node: fx.Node) -> bool:
        """Whether a node takes one of the results of a call, which are values of their own here."""
        if node.target is not getitem:
            return False
        source, index = node.args
        results = self.values[source]  # pyright: ignore[reportArgumentType]
        self.values[node] = results[index]
        results[index].name_hint = node.name
        return True

    def import_outputs(self, node: fx.Node, specs: list[OutputSpec]) -> None:
        """Return what the user sees, then what the program writes."""
        (outputs,) = node.args
        seen, written = [], []
        for value, spec in zip(outputs, specs, strict=True):  # pyright: ignore[reportArgumentType]
            if spec.kind is OutputKind.USER_OUTPUT:
                self.outputs.append(Leaf.VALUE if isinstance(value, fx.Node) else value)
                if isinstance(value, fx.Node):
                    seen.append(self.value(value))
            elif spec.kind in MUTATION_KINDS:
                written.append(self.value(value))
                self.res_attrs.append(DictionaryAttr(self.written_to(spec)))
            else:
                raise GqcError(f"output {spec.arg} is a {spec.kind.name}: capture for inference")
        self.res_attrs = [DictionaryAttr({}) for _ in seen] + self.res_attrs
        self.block.add_op(ReturnOp(*seen, *written))

    def written_to(self, spec: OutputSpec) -> dict[str, Attribute]:
        """Where a result of the program is written."""
        assert spec.target is not None
        if spec.kind is OutputKind.USER_INPUT_MUTATION:
            return {"fx.mutates_argument": IntegerAttr(self.arguments.index(spec.target), i64)}
        name = self.canonical[spec.target]
        self.weights[name] = deepcopy(self.tensors[name])  # the model keeps its own
        return {"fx.mutates": StringAttr(name)}

    def value(self, node: fx.Node) -> Any:
        """Value of a node, or list of values; a weight appears where it is first used."""
        name = self.weight_names.get(node.name)
        if name is None:
            return self.values[node]
        if name not in self.weight_values:
            type_ = self.type_of(node, self.tensors[name])
            assert isinstance(type_, TensorType)
            op = WeightOp(name, type_)
            op.result.name_hint = node.name
            op.location = location(name.rpartition(".")[0])
            self.block.add_op(op)
            self.weights[name] = share(self.tensors[name])
            if not isinstance(self.tensors[name], nn.Parameter):
                op.attributes["buffer"] = UnitAttr()
            if name in self.routers:
                op.attributes["router"] = UnitAttr()
            self.weight_values[name] = op.result
        return self.weight_values[name]

    def type_of(self, node: fx.Node, value: Any) -> Attribute:
        try:
            return value_type(value)
        except TypeError as error:
            raise GqcError(f"{describe(node)}: {error}") from error

    def function(self) -> FuncOp:
        returned = self.block.last_op
        assert returned is not None
        return FuncOp(
            "forward",
            (self.block.arg_types, returned.operand_types),
            Region(self.block),
            arg_attrs=ArrayAttr(self.arg_attrs),
            res_attrs=ArrayAttr(self.res_attrs) if any(a.data for a in self.res_attrs) else None,
        )

    def signature(self) -> Signature:
        call_spec = self.program.module_call_graph[0].signature
        assert call_spec is not None
        in_spec, out_spec = call_spec.in_spec, call_spec.out_spec
        names = call_spec.forward_arg_names or positional_names(in_spec)
        return Signature(tuple(names), in_spec, out_spec, tuple(self.inputs), tuple(self.outputs))

    def aliases(self) -> dict[str, str]:
        """Canonical name of each further name of a tied weight that the state dict has."""
        names = ((name, self.canonical[name]) for name in self.program.state_dict)
        return {a: name for a, name in names if a != name and name in self.weights}


class DimensionNames:
    """Names of symbolic sizes: an input's first dimension is the batch, its second the sequence."""

    ROLES = ("batch", "seq", "dim")

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def of(self, value: Any) -> ArrayAttr[StringAttr]:
        """Names of the symbolic dimensions of a tensor, in order."""
        if not isinstance(value, torch.Tensor):
            return ArrayAttr([])
        symbolic = [(d, str(n)) for d, n in enumerate(value.shape) if extent(n) == DYNAMIC_INDEX]
        return ArrayAttr([StringAttr(self.name(symbol, d)) for d, symbol in symbolic])

    def name(self, symbol: str, dimension: int) -> str:
        if symbol not in self.names:
            role = self.ROLES[min(dimension, len(self.ROLES) - 1)]
            taken = sum(n.split("_")[0] == role for n in self.names.values())
            self.names[symbol] = f"{role}_{taken}" if taken else role
        return self.names[symbol]


def positional_names(in_spec: pytree.TreeSpec) -> list[str]:
    """Parameter names for a program that has none: of `(args, kwargs)`."""
    args, kwargs = in_spec.children()
    return [f"arg_{i}" for i in range(args.num_children)] + list(kwargs.context)


def callee_name(node: fx.Node) -> str:
    """Name of a node's target as `gqc.dialects.fx.resolve_callee` finds it."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    name = f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}"
    try:
        found = resolve_callee(name)
    except AttributeError:
        found = None
    if isinstance(target, torch._ops.HigherOrderOperator) or found is not target:
        raise GqcError(
            f"{describe(node)}: no call of it can be imported; keep control flow and higher-order "
            "ops out of the compiled module, or compile its submodules one by one"
        )
    return name


def describe(node: fx.Node) -> str:
    path = path_of(node)
    return f"{node.name} ({node.target}) in {path or 'the model'}"


def path_of(node: fx.Node) -> str | None:
    """Path of the module whose call made a node; `""` is the model, None unknown."""
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    if not paths or paths[-1].startswith("_empty_nn_module_stack"):
        return None
    # A second call of a module is `path@1`; a graph captured by Dynamo starts at L['self'].
    return re.sub(r"@\d+", "", paths[-1].removeprefix("L['self']").removeprefix("."))
