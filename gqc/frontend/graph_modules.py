"""What `export_fx` gives: graph modules that are copied, saved and moved as modules are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NoReturn

import torch
from torch import fx, nn
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation

from gqc.dialects.fx import CallOp
from gqc.dialects.gq import LaunchOp, RotateChannelsOp, TensorScaleOp, WeightOp, element_type
from gqc.dialects.text import parse_ir, print_ir
from gqc.dialects.tile import KernelOp
from gqc.dialects.torch_types import DTYPES
from gqc.errors import GqcError
from gqc.frontend import attention  # noqa: F401 (what functions of weights call instead)
from gqc.frontend.signature import Imported
from gqc.runtime.ops import launch_of, registered
from gqc.runtime.ops import register as register_launch
from gqc.runtime.weight_handle import QuantizedWeight


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

HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)
"""Where a module has its hooks, and what is known of them."""


COMPILED_CALL = "_compiled_call_impl"
"""Where `nn.Module.compile` leaves a function of that module alone: copies do without."""


class GroupedQuantModule(fx.GraphModule):
    """A graph module that is copied with its attributes, and pickled as its IR and weights."""

    _source: Source

    def __init__(self, root: Any, graph: fx.Graph, class_name: str = "GroupedQuantModule"):
        super().__init__(root, graph, class_name)
        for registry in REGISTRIES:  # torch takes what the graph reads, and of that not all
            vars(self)[registry].update(vars(root)[registry])
        vars(self).update({name: vars(root)[name] for name in HOOKS if name in vars(root)})
        vars(self)["training"] = vars(root)["training"]
        for name, value in vars(root).items():
            if name != COMPILED_CALL:
                self.__dict__.setdefault(name, value)

    def _deepcopy_init(self) -> Callable[..., None]:
        return type(self).__init__

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Move tensors; packed weights keep their dtypes. Raises GqcError, before anything has
        changed, on another dtype: the graph's operations are of the one that it was captured in."""
        for dtype in self.float_dtypes():
            if (new := dtype_after(fn, dtype)) != dtype:
                raise GqcError(
                    f"the model was compiled for {dtype} and cannot become {new}: convert it "
                    "before gqc.compile, or compile it without example_inputs"
                )
        return super()._apply(keeping_dtypes(fn), recurse)

    def float_dtypes(self) -> set[torch.dtype]:
        """Of activations that launches read, and of all tensors that are not parts of weights."""
        calls = [n for n in self.graph.nodes if n.target is torch.ops.gqc.matmul.default]
        parts = {part.target for call in calls for part in call.args[2]}
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        dtypes = {t.dtype for name, t in tensors.items() if name not in parts}
        dtypes |= {registered(call.args[4]).inputs[0][0] for call in calls}
        return {dtype for dtype in dtypes if dtype.is_floating_point and dtype.itemsize > 1}

    def __reduce__(self) -> tuple:
        from gqc.frontend.export_fx import restore

        weights = {name: tensor_of(self, fqn) for name, fqn in self._source.names.items()}
        state = {k: v for k, v in vars(self).items() if k not in made_anew()}
        return restore, (self._source, weights), state


def dtype_after(fn: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> torch.dtype:
    """What a function of tensors, as `nn.Module.to` applies one, makes of a dtype."""
    return fn(torch.empty(0, dtype=dtype)).dtype


def keeping_dtypes(
    fn: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function, but for what it makes of dtypes."""

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        new = fn(tensor)
        return new if new.dtype == tensor.dtype else tensor.to(new.device)

    return kept


@dataclass(frozen=True)
class CastInput:
    """A hook: a layer that was converted computes in the dtype that it was compiled for."""

    dtype: torch.dtype

    def __call__(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> Any:
        return tuple(arg.to(self.dtype) for arg in args)


@dataclass(frozen=True)
class CastOutput:
    """A hook: a layer that was converted gives the dtype that it was converted to."""

    dtype: torch.dtype

    def __call__(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.to(self.dtype)


class LinearFace(nn.Linear):
    """What makes a compiled layer an `nn.Linear` to those who ask, as adapters do."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


class GroupedQuantLinear(GroupedQuantModule, LinearFace):
    """In the place of a linear layer: others may read its weight, as they read that layer's."""

    _decoding: Decoding

    @property
    def weight(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The weight that the codes stand for, in the dtype of the activations.

        [N, K]; [K, N] in the place of a Conv1D. Its values are computed each time that they are
        read, which is slow; its shape, dtype and device cost nothing. Writing raises GqcError.
        """
        if torch.compiler.is_compiling():
            return self.decoded()  # which a graph has for nothing if only the dtype is read
        n, k = self._decoding.shape
        shape = (k, n) if self.is_conv1d else (n, k)
        device = self.stored(self._decoding.parts[0]).device
        return QuantizedWeight(self, shape, self.dtype, device)

    @weight.setter
    def weight(self, value: Any) -> None:
        own = isinstance(value, QuantizedWeight) and value.layer is self
        marker = isinstance(value, torch.Tensor) and not value.numel()  # of a state dict
        if not own and not marker:
            self.refuse_write()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """The layer's state, and a tensor of no elements for its weight: a dense model refuses
        that, where it may pass over a name that is missing (`strict=False`)."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = torch.empty(0, dtype=self.dtype)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Load a compiled layer's state; a dense weight is an error."""
        *_, errors = rest
        given = state_dict.pop(f"{prefix}weight", None)
        if given is not None and given.numel():
            errors.append(
                f"{prefix}weight is packed, and no dense weight can be loaded into it: load "
                "weights before gqc.compile"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == "weight":
            self.refuse_write()
        super().register_parameter(name, param)

    def refuse_write(self) -> NoReturn:
        """Raise GqcError: the weight is quantized."""
        raise GqcError(
            f"{self._source.function or 'this layer'} is compiled, and its weight cannot be "
            "written: the change would be lost. Change or merge weights before gqc.compile; keep "
            "an adapter apart from the compiled layer, unmerged"
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Move tensors. Where that converts activations, inputs and outputs are cast from now on;
        the kernels, and all that they read, stay what they are."""
        dtype = dtype_after(fn, self.dtype)
        nn.Module._apply(self, keeping_dtypes(fn), recurse)
        if dtype != self.dtype:
            self.convert(dtype)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Of inputs and outputs."""
        casts = [h.dtype for h in self._forward_hooks.values() if isinstance(h, CastOutput)]
        return casts[0] if casts else self._decoding.dtype

    def convert(self, dtype: torch.dtype) -> None:
        """Take inputs and give outputs of another dtype."""
        for hooks in (self._forward_pre_hooks, self._forward_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(hook, CastInput | CastOutput):
                    del hooks[key]
        if dtype != self._decoding.dtype:
            self.register_forward_pre_hook(CastInput(self._decoding.dtype))
            self.register_forward_hook(CastOutput(dtype), prepend=True)

    @property
    def is_conv1d(self) -> bool:
        return "nf" in vars(self)

    def decoded(self) -> torch.Tensor:
        """The weight, dense, as `weight` says."""
        how = self._decoding
        dense = torch.ops.gqc.weight.default([self.stored(part) for part in how.parts], how.kernel)
        for change, constant, names in how.changes:
            dense = change(dense, constant, *[self.stored(name) for name in names])
        return (dense.t() if self.is_conv1d else dense).to(self.dtype)

    def stored(self, name: str) -> torch.Tensor:
        """A tensor of this module by its qualified name."""
        return tensor_of(self, name)


@dataclass(frozen=True)
class Decoding:
    """How the weight [N, K] of a layer is computed: from the parts of a launch, by changes after.

    Parts, and what changes read, are names in the layer's module. A change is a function of the
    weight, a constant and tensors.
    """

    kernel: str
    parts: tuple[str, ...]
    changes: tuple[tuple[Callable[..., torch.Tensor], int | None, tuple[str, ...]], ...]
    shape: tuple[int, ...]
    dtype: torch.dtype


def decoding_of(symbols: Symbols, function: str, names: dict[str, str]) -> Decoding | None:
    """How to decode the weight of a function that is a layer; `names` are those in its module."""
    if (found := matmul_of(symbols.functions[function])) is None:
        return None
    launch, changes = found
    described = launch_of(launch, symbols.kernels)
    assert described.packed is not None

    def stored(op: Operation) -> tuple[str, ...]:
        weights = (value.owner for value in op.operands)
        return tuple(names[weight.key] for weight in weights if isinstance(weight, WeightOp))

    parts = [part.owner for part in launch.parts]
    return Decoding(
        register_launch(described),
        tuple(names[part.key] for part in parts if isinstance(part, WeightOp)),
        tuple((CHANGES[change_name(op)], constant_of(op), stored(op)) for op in changes),
        described.packed.shape,
        DTYPES[element_type(launch.outputs[0])],
    )


CHANGES: dict[str, Callable[..., torch.Tensor]] = {
    "aten.mul.Tensor": lambda w, _, factor: w * factor,
    "aten.div.Tensor": lambda w, _, factor: w / factor,
    "aten.index_select.default": lambda w, _, order: w[:, order.argsort()],
    "aten._to_copy.default": lambda w, _: w,
    "gq.rotate_channels": lambda w, block: torch.ops.gqc.rotate.default(w, block),
}
"""What a layer's weight is where its input goes through this before it meets the weight w."""


def constant_of(op: Operation) -> int | None:
    """The constant of a change."""
    return op.block.value.data if isinstance(op, RotateChannelsOp) else None


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
def made_anew() -> frozenset[str]:
    """Attributes that are not pickled: those of the graph, and what the source tells."""
    graph = vars(GroupedQuantModule(nn.Module(), fx.Graph())).keys() - vars(nn.Module()).keys()
    return frozenset(graph) | {"_source", "_decoding", COMPILED_CALL}
