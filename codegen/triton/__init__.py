"""Triton backend: tile kernels as readable Python, compiled offline or launched."""

from __future__ import annotations

from gqc.codegen.triton.emitter import emit
from gqc.codegen.triton.gates import check
from gqc.codegen.triton.launcher import load
from gqc.codegen.triton.offline import KernelArtifacts, compile_many, compile_offline

__all__ = ["KernelArtifacts", "check", "compile_many", "compile_offline", "emit", "load"]
