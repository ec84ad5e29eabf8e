"""Locations of operations: the path of the module that made them, and the line of its source.

`loc("model.layers.0.mlp.up_proj"("modeling_llama.py":176:0))`; IR is printed with them by
`--print-debuginfo`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from xdsl.dialects.builtin import (
    UNKNOWN_LOC,
    FileLineColLoc,
    IntAttr,
    LocationAttr,
    NameLoc,
    NoneAttr,
    StringAttr,
)
from xdsl.ir import Operation

FRAME = re.compile(r'File "([^"]*)", line (\d+)')


def location(path: str | None, stack_trace: str | None = None) -> LocationAttr:
    """Location of what a module's call made; the empty path is the model itself."""
    if path is None:
        return UNKNOWN_LOC
    return NameLoc(StringAttr(path), source_line(stack_trace or "") or NoneAttr())


@lru_cache(maxsize=1024)
def source_line(stack_trace: str) -> FileLineColLoc | None:
    """The innermost line of a formatted stack trace that is not torch's own, if there is one."""
    frames = [(f.rpartition("site-packages/")[2], n) for f, n in FRAME.findall(stack_trace)]
    frames = [frame for frame in frames if not frame[0].startswith("torch/")]
    if not frames:
        return None
    file, line = frames[-1]
    return FileLineColLoc(StringAttr(file.rpartition("/")[2]), IntAttr(int(line)), IntAttr(0))


def module_path(op: Operation) -> str | None:
    """Path of the module that made an operation, None where it is not known."""
    return op.location.desc.data if isinstance(op.location, NameLoc) else None
