"""Calibration inputs on their way through a model, one of its blocks at a time.

Of all that a model computes, the output of one block is kept for each input. To run the next block,
the model runs as ever, but blocks before give what is kept, and nothing after the block is run: so
a model's own code makes each block's arguments, whatever they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from gqc.frontend.capture import Inputs, inference
from gqc.frontend.linears import is_linear


class Reached(Exception):
    """Raised in a model to leave it where one of its modules begins or ends."""

    def __init__(self, value: Any):
        self.value = value


@dataclass(frozen=True)
class Part:
    """What is quantized together: a block, or what runs before or after all of them.

    number: the block's; −1 before, the number of blocks after (for a model without any, all of it).
    """

    number: int
    blocks: tuple[str, ...]
    """Paths of all blocks of the model."""

    @property
    def is_block(self) -> bool:
        return 0 <= self.number < len(self.blocks)

    @property
    def name(self) -> str:
        names = {-1: "before the blocks", len(self.blocks): "after the blocks"}
        return self.blocks[self.number] if self.is_block else names[self.number]

    def holds(self, name: str) -> bool:
        """Whether a module or parameter is in the part; before and after both hold what is in no
        block."""
        homes = [path for path in self.blocks if name == path or name.startswith(f"{path}.")]
        return homes == ([self.name] if self.is_block else [])


class Stream:
    """The inputs of a model, and how far they are."""

    def __init__(self, model: nn.Module, inputs: Sequence[Inputs]):
        self.model, self.inputs = model, inputs
        self.blocks = chain_of(model, inputs[0]) if inputs else {}
        self.outputs: list[Any] = [None] * len(inputs)

    def parts(self) -> list[Part]:
        """The parts, in the order in which they run."""
        first, last = -1 if self.blocks else 0, len(self.blocks)
        return [Part(number, tuple(self.blocks)) for number in range(first, last + 1)]

    def run(self, part: Part, keep: bool = False) -> Iterator[None]:
        """Run every input through a part, one a step; `keep` the outputs, for the next part."""
        blocks = list(self.blocks.values())
        done, ahead = blocks[: max(part.number, 0)], blocks[max(part.number, 0) :]
        with inference(self.model):
            for i, example in enumerate(self.inputs):
                with replayed(done, self.outputs[i]):
                    output = run_until(self.model, example, ahead[:1], ends=part.is_block)
                if keep:
                    self.outputs[i] = output
                yield


def run_until(model: nn.Module, example: Inputs, where: Sequence[nn.Module], ends: bool) -> Any:
    """Run a model until a module, if any, begins or ends: its arguments, or its output."""

    def leave(*value: Any) -> None:
        raise Reached(value[2] if ends else value[1:])

    hooks = [
        m.register_forward_hook(leave)
        if ends
        else m.register_forward_pre_hook(leave, with_kwargs=True)
        for m in where
    ]
    args, kwargs = example
    try:
        model(*args, **kwargs)
    except Reached as reached:
        return reached.value
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def replayed(blocks: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Modules that give an output without being run."""
    for block in blocks:
        block.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def chain_of(model: nn.Module, example: Inputs) -> Mapping[str, nn.Module]:
    """The blocks of a model by path: the longest list of modules that run one after the other.

    Empty, and warned of, where the model must run as a whole: it has no list of modules that hold
    linear layers, or a block reads more of those before than the last one's output.
    """
    lists = [
        {f"{path}.{name}".lstrip("."): block for name, block in m.named_children()}
        for path, m in model.named_modules()
        if isinstance(m, nn.ModuleList)
    ]
    lists = [each for each in lists if all(map(holds_linears, each.values()))]
    if not lists:
        return {}
    blocks = max(lists, key=len)
    if is_chain(model, list(blocks.values()), example):
        return blocks
    first = next(iter(blocks))
    warnings.warn(
        f"{first} and the blocks after it are not called one after the other, once each: the model "
        "is calibrated as a whole, which takes memory for the statistics of all layers",
        stacklevel=5,
    )
    return {}


def holds_linears(module: nn.Module) -> bool:
    return any(map(is_linear, module.modules()))


def is_chain(model: nn.Module, blocks: Sequence[nn.Module], example: Inputs) -> bool:
    """Whether each block's arguments follow from the output of the one before, and the inputs."""
    called: list[tuple[nn.Module, Any, Any]] = []

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        called.append((module, (args, kwargs), output))

    hooks = [block.register_forward_hook(note, with_kwargs=True) for block in blocks]
    with inference(model):
        run_until(model, example, [], ends=False)
        for hook in hooks:
            hook.remove()
        if [module for module, _, _ in called] != list(blocks):
            return False
        for i in range(1, len(blocks)):
            with replayed(blocks[:i], called[i - 1][2]):
                arguments = run_until(model, example, blocks[i : i + 1], ends=False)
            if not same(arguments, called[i][1]):
                return False
    return True


def same(a: Any, b: Any) -> bool:
    """Whether two trees of arguments are equal to the bit."""
    (left, left_spec), (right, right_spec) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    return left_spec == right_spec and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) else x == y
        for x, y in zip(left, right, strict=True)
    )
