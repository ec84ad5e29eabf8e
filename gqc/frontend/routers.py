"""Routers of experts, by the names and shapes of a model's parameters.

A router is a small matrix that chooses the experts of each token: an error of its product sends
tokens elsewhere, so gqc keeps it dense unless a scheme names it. Names and shapes are what a
module, an exported program and a checkpoint all have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ROUTERS = "gq.routers"
"""Attribute of a module of IR: the routers that are no linear layers, and so have no function."""

ROUTER = re.compile(r"router|^gate$")
"""Parts of a path that call a module a router, beside experts."""
NUMBER = re.compile(r"(\d+)$")


@dataclass
class Block:
    """A module that holds experts: how many, as numbered children and first sizes of stacks say."""

    numbered: set[str] = field(default_factory=set)
    stacks: set[int] = field(default_factory=set)

    @property
    def counts(self) -> set[int]:
        return self.stacks | ({len(self.numbered)} if self.numbered else set())


def routers(shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """Names of the weights [experts, K] that choose experts, of the shapes of all parameters.

    In a block that holds `experts` they are the matrices of what is called `router` or `gate`, or
    else those with a row for each expert; beside stacks by another name (Granite's) they are called
    `router` and have a row for each. The gate [1, K] of a shared expert is one too.
    """
    blocks, found = blocks_of(shapes), set[str]()
    matrices = {
        n: s for n, s in shapes.items() if len(s) == 2 and not any(map(is_experts, n.split(".")))
    }
    for block, experts in blocks.items():
        paths = {n: n.removeprefix(block) for n in matrices if n.startswith(block)}
        shared = {n for n, path in paths.items() if "expert" in path}
        named = {n for n in paths.keys() - shared if is_called_router(paths[n])}
        like = {n for n in paths.keys() - shared if matrices[n][0] in experts.counts}
        gates = {n for n in shared if "gate" in paths[n] and matrices[n][0] == 1}
        found |= (named or like) | gates
    stacks = {n: s for n, s in shapes.items() if len(s) == 3 and not any(map(n.startswith, blocks))}
    for name, shape in stacks.items():
        block = parent(parent(name))
        paths = {n: n.removeprefix(block) for n in matrices if n.startswith(block)}
        found |= {n for n, p in paths.items() if "router" in p and matrices[n][0] == shape[0]}
    return found


def blocks_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, Block]:
    """The modules that hold something called experts, by their paths with a dot at the end."""
    blocks: dict[str, Block] = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if is_experts(part)), None)
        if at is None:
            continue
        block = blocks.setdefault("".join(f"{part}." for part in parts[:at]), Block())
        if at + 2 < len(parts) and NUMBER.search(parts[at + 1]):
            block.numbered.add(parts[at + 1])
        elif len(shape) == 3:
            block.stacks.add(shape[0])
    return blocks


def parent(path: str) -> str:
    """The path without its last part, with a dot at the end; empty of one part."""
    head = path.rstrip(".").rpartition(".")[0]
    return f"{head}." if head else ""


def is_experts(part: str) -> bool:
    """Whether a part of a path calls a module that of all experts, and not a shared one."""
    return "experts" in part and "shared" not in part


def is_called_router(path: str) -> bool:
    return any(ROUTER.search(part) for part in path.split("."))
