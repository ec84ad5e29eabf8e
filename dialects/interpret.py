"""Run any stage's IR on torch tensors."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from xdsl.dialects.builtin import ModuleOp
from xdsl.interpreter import Interpreter
from xdsl.interpreters.arith import ArithFunctions
from xdsl.interpreters.func import FuncFunctions
from xdsl.interpreters.scf import ScfFunctions

from gqc.dialects.fx_interpreter import FxFunctions
from gqc.dialects.gq import MaterializeOp
from gqc.dialects.gq_interpreter import GqFunctions
from gqc.dialects.tile_interpreter import TileFunctions
from gqc.dialects.tile_quantize_interpreter import QuantizeFunctions
from gqc.dialects.tile_scaled_interpreter import ScaledFunctions

if TYPE_CHECKING:
    import torch

    from gqc.formats.block_scaled import BlockScaled


def interpreter(
    module: ModuleOp, weights: MutableMapping[str, torch.Tensor | BlockScaled]
) -> Interpreter:
    """An interpreter of every dialect of gqc; `weights` is the side store, by name."""
    interpreter = Interpreter(module)
    standard = (FuncFunctions(), ArithFunctions(), ScfFunctions())
    tiles = (TileFunctions(), QuantizeFunctions(), ScaledFunctions())
    for each in (*standard, FxFunctions(), GqFunctions(weights), *tiles):
        interpreter.register_implementations(each, override=True)  # xDSL's are of scalars
    return interpreter


def run(
    module: ModuleOp,
    weights: Mapping[str, torch.Tensor | BlockScaled],
    args: Sequence[Any],
    function: str = "forward",
) -> tuple[Any, ...]:
    """Results of a function of the module: user outputs, then mutated buffers.

    Work on weights comes first (`gq.materialize`), into a store of its own before `weights`.
    """
    found = interpreter(module, ChainMap({}, weights))  # pyright: ignore[reportArgumentType]
    for op in module.ops:
        if isinstance(op, MaterializeOp):
            found.run_op(op, ())
    return found.call_op(function, tuple(args))
