"""Meaning of the `fx` dialect: call the torch function."""

from __future__ import annotations

from typing import Any

from xdsl.interpreter import Interpreter, InterpreterFunctions, impl, register_impls

from gqc.dialects.fx import CallOp, decode_argument, resolve_callee


@register_impls
class FxFunctions(InterpreterFunctions):
    @impl(CallOp)
    def run_call(
        self, interpreter: Interpreter, op: CallOp, args: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        values = decode_argument(op.args, args)
        kwargs = {key: decode_argument(attr, args) for key, attr in op.kwargs.data.items()}
        result = resolve_callee(op.callee.data)(*values, **kwargs)
        if not op.results:
            return ()
        return tuple(result) if isinstance(result, list | tuple) else (result,)
