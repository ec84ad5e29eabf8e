"""Capture of a model as an `ExportedProgram`: functional aten ops, batch and sequence dynamic."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree
from xdsl.dialects.builtin import DYNAMIC_INDEX

from gqc.dialects.torch_types import extent
from gqc.errors import GqcError
from gqc.first_calls import CAPTURE

VAR_KEYWORD, POSITIONAL = Parameter.VAR_KEYWORD, Parameter.POSITIONAL_OR_KEYWORD

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

LINEARS_ALONE = "or compile without example inputs, which takes the linear layers alone"
REMEDIES: list[tuple[type[Exception], str, str]] = [
    (
        GuardOnDataDependentSymNode,
        "",
        "its Python control flow or shapes depend on the values of tensors: rewrite that with "
        f"torch.where, {LINEARS_ALONE}",
    ),
    (
        RuntimeError,
        "not a known type",
        "return tensors, in tuples, lists, dicts or types registered with "
        f"torch.export.register_dataclass, {LINEARS_ALONE}",
    ),
    (UserError, "", "give dynamic_shapes that its constraints allow ({} fixes every shape)"),
    (TypeError, "argument", "check that the example inputs are those of forward()"),
    (
        Exception,
        "",
        "export it with torch.export yourself and pass the ExportedProgram, " + LINEARS_ALONE,
    ),
]
"""What to do about an error of torch.export: by its type and a part of its message."""


def capture(
    model: nn.Module | ExportedProgram,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
) -> ExportedProgram:
    """Export a model in inference mode, decomposed to functional aten ops.

    `example_inputs` is a tensor, a tuple of positional inputs, a mapping of keyword inputs, or the
    pair (tuple, dict) of both; a graph module that carries shapes needs none. Batch and sequence
    dimensions are dynamic (`free_dimensions`) unless `dynamic_shapes`, as of `torch.export.export`,
    says otherwise; a warning names those that the model fixes. Hugging Face models are captured
    without a key-value cache.

    Raises GqcError, with the module's path and a remedy, if the model cannot be exported.
    """
    if isinstance(model, ExportedProgram):
        if example_inputs is not None or dynamic_shapes is not None:
            raise GqcError(
                "an ExportedProgram has its inputs and dynamic shapes: give neither "
                "example_inputs nor dynamic_shapes, or give the model that it was exported from"
            )
        with torch.no_grad():
            return model.run_decompositions({})
    if example_inputs is None:
        args, kwargs = inputs_from_metadata(model)
        traced = tuple(symbolic_dimensions(node) for node in placeholders(model))
        dynamic_shapes = traced if dynamic_shapes is None else dynamic_shapes
    else:
        args, kwargs = split_inputs(example_inputs)
    inferred = dynamic_shapes is None
    if inferred:
        args, kwargs = widen_batch(args, kwargs)
    with CAPTURE, inference(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        try:
            with separate_parameters(model, args, kwargs) as collected:
                shapes = separate_shapes(dynamic_shapes, collected)
                shapes = infer_dynamic_shapes(model, args, kwargs) if inferred else shapes
                exported = torch.export.export(
                    model, args, kwargs, dynamic_shapes=shapes, strict=False
                )
            program = exported.run_decompositions({})
        except Exception as error:
            raise capture_error(model, error) from error
    if inferred:
        warn_of_fixed_dimensions(program, args, kwargs)
    return program


def split_inputs(example_inputs: Any) -> Inputs:
    """Positional and keyword inputs, copied: torch.export takes one tensor given twice for one."""
    match example_inputs:
        case (tuple() as args, dict() as kwargs):
            inputs = args, kwargs
        case Mapping():
            inputs = (), dict(example_inputs)
        case tuple() | list():
            inputs = tuple(example_inputs), {}
        case _:
            inputs = (example_inputs,), {}
    return pytree.tree_map_only(torch.Tensor, lambda x: x.detach().clone(), inputs)


def free_dimensions(value: Any) -> tuple[int, ...]:
    """Dimensions of an input that vary from call to call.

    The first is the batch; the second of tokens [batch, sequence] and of vectors [batch, sequence,
    features] is the sequence.
    """
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return ()
    is_sequence = value.ndim == 3 or (value.ndim == 2 and not value.is_floating_point())
    return (0, 1) if is_sequence else (0,)


def widen_batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    """Inputs with a batch of two for one: torch.export takes a size of 1 for a constant.

    Inputs of which only some have a batch of one stay as they are: those are broadcast.
    """
    leaves = [x for x in pytree.tree_leaves((args, kwargs)) if free_dimensions(x)]
    if any(x.shape[0] != 1 for x in leaves):
        return args, kwargs

    def widen(value: Any) -> Any:
        return torch.cat([value, value]) if free_dimensions(value) else value

    return pytree.tree_map(widen, (args, kwargs))


def infer_dynamic_shapes(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The `dynamic_shapes` of torch.export in which all free dimensions may vary."""
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return pytree.tree_map(lambda x: dict.fromkeys(free_dimensions(x), Dim.AUTO) or None, bound)


@contextmanager
def separate_parameters(
    model: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> Iterator[set[str]]:
    """Give `forward` a parameter of its own for each input that `*args` or `**kwargs` collects.

    Yields the names of these two, if they collect any. torch.export binds such inputs under that
    one name first and each by itself later, and then its dynamic shapes do not fit the inputs.
    """
    signature = inspect.signature(model.forward)
    bound = signature.bind(*args, **kwargs).arguments
    kinds = {name: signature.parameters[name].kind for name in bound}
    collected = {n for n, kind in kinds.items() if kind in (Parameter.VAR_POSITIONAL, VAR_KEYWORD)}
    if not collected:
        yield collected
        return
    names: list[str] = []
    for name, kind in kinds.items():
        several = kind is Parameter.VAR_POSITIONAL
        names += [f"{name}_{i}" for i in range(len(bound[name]))] if several else [name]
    positional = [Parameter(name, POSITIONAL) for name in names[: len(args)]]
    keywords = [Parameter(name, Parameter.KEYWORD_ONLY) for name in kwargs]
    inner, attributes = model.forward, vars(model)
    earlier = {"forward": attributes["forward"]} if "forward" in attributes else {}

    def forward(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    forward.__signature__ = inspect.Signature([*positional, *keywords])  # pyright: ignore
    attributes["forward"] = forward
    try:
        yield collected
    finally:
        del attributes["forward"]
        attributes.update(earlier)


def separate_shapes(shapes: Any, collected: set[str]) -> Any:
    """Dynamic shapes by the names of `separate_parameters`, of those by `forward`'s own."""
    if not isinstance(shapes, dict) or collected.isdisjoint(shapes):
        return shapes
    new: dict[str, Any] = {}
    for name, shape in shapes.items():
        several = isinstance(shape, tuple | list) and name in collected
        parts = {f"{name}_{i}": each for i, each in enumerate(shape)} if several else {name: shape}
        new |= shape if isinstance(shape, dict) and name in collected else parts
    return new


def warn_of_fixed_dimensions(program: ExportedProgram, args: tuple, kwargs: dict[str, Any]) -> None:
    """Warn of each batch and token dimension that the model fixed at its example's size."""
    leaves = pytree.tree_leaves((args, kwargs))
    specs = [s for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
    captured = {n.name: n.meta["val"] for n in program.graph.find_nodes(op="placeholder")}
    for spec, example in zip(specs, leaves, strict=True):
        for d in free_dimensions(example):
            is_feature = example.is_floating_point() and (d == 1 or example.ndim == 1)
            if extent(captured[spec.arg.name].shape[d]) != DYNAMIC_INDEX and not is_feature:
                warnings.warn(
                    f"{spec.arg.name}: the model fixes dimension {d} at {example.shape[d]}; "
                    "if it should vary, give an example in which it is larger than 1 and differs "
                    "from other sizes, or pass dynamic_shapes",
                    stacklevel=3,
                )


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients or a key-value cache; the model is left as it was found."""
    training = [m for m in model.modules() if m.training]
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    caching = [c for c in configs.values() if getattr(c, "use_cache", False) is True]
    try:
        for module in training:
            module.training = False
        for config in caching:
            config.use_cache = False
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
        for config in caching:
            config.use_cache = True


def placeholders(model: nn.Module) -> list[fx.Node]:
    """Inputs of a graph module. Raises GqcError if it is none, or if they carry no shapes."""
    nodes = model.graph.find_nodes(op="placeholder") if isinstance(model, fx.GraphModule) else []
    if not nodes or any(example_value(node) is None for node in nodes):
        raise GqcError(
            f"{type(model).__name__} does not tell the shapes of its inputs: pass example_inputs"
        )
    return nodes


def example_value(node: fx.Node) -> Any:
    """The (fake) value that tracing left on a node."""
    return node.meta.get("val", node.meta.get("example_value"))


def inputs_from_metadata(model: nn.Module) -> Inputs:
    """Inputs of a graph module: numbers, and zeros of the shapes that its placeholders carry."""

    def example(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            shape = [example(size) for size in value.shape]
            return torch.zeros(shape, dtype=value.dtype, device=value.device)
        # int(value) would bind the symbol to this size.
        return value.node.hint if isinstance(value, torch.SymInt) else value

    return tuple(example(example_value(node)) for node in placeholders(model)), {}


def symbolic_dimensions(node: fx.Node) -> Any:
    """What of a placeholder its graph was traced with symbols for, as torch.export says it."""
    value = example_value(node)
    if isinstance(value, torch.SymInt):
        return Dim.AUTO
    if not isinstance(value, torch.Tensor):
        return None
    return {d: Dim.AUTO for d, size in enumerate(value.shape) if extent(size) == DYNAMIC_INDEX}


def capture_error(model: nn.Module, error: Exception) -> GqcError:
    """The error of torch.export, told with the module at fault and a remedy."""
    remedy = next(r for kind, part, r in REMEDIES if isinstance(error, kind) and part in str(error))
    path = failing_module(model, error)
    where = f" (in {path})" if path else ""
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return GqcError(f"cannot capture {type(model).__name__}{where}: {reason.strip()}\n{remedy}")


def failing_module(model: nn.Module, error: BaseException | None) -> str | None:
    """Path of the innermost module on the error's traceback, or on that of its cause."""
    paths = {id(module): name for name, module in model.named_modules()}
    while error is not None:
        found, traceback = None, error.__traceback__
        while traceback is not None:
            found = paths.get(id(traceback.tb_frame.f_locals.get("self")), found)
            traceback = traceback.tb_next
        if found:
            return found
        error = error.__cause__ or error.__context__
    return None
