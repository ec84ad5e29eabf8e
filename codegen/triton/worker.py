"""Compile Triton sources for machines that are not here. Runs under any Python that has Triton.

    python worker.py REQUEST RESPONSE

REQUEST is JSON, a list of {"source": text of a printed kernel, "target": [backend, arch, warp
size]}; a source that gqc did not print may name values of `tl.constexpr` arguments in CONSTANTS.
RESPONSE is JSON, for each its texts and metadata, or {"error": why not}. This file imports nothing
of gqc, so that the Python of another environment, with another Triton, can run it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TEXTS = ("ttir", "ttgir", "ptx", "amdgcn")


def import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kernel_of(module: ModuleType) -> triton.JITFunction:
    """The kernel of a printed source: the one function whose arguments SIGNATURE names."""
    names = list(module.SIGNATURE)
    return next(f for f in vars(module).values() if getattr(f, "arg_names", None) == names)


def disassemble(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.nvdisasm.path, "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compile_job(source: Path, target: list) -> dict:
    """Every array is taken to be 16-byte aligned, as an allocation is."""
    module = import_file(source)
    kernel = kernel_of(module)
    pointers = [i for i, t in enumerate(module.SIGNATURE.values()) if t.startswith("*")]
    attributes = {(i,): [["tt.divisibility", 16]] for i in pointers}
    constants = getattr(module, "CONSTANTS", {})
    ast = ASTSource(kernel, signature=module.SIGNATURE, constexprs=constants, attrs=attributes)
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(ast, target=GPUTarget(*target), options=module.OPTIONS)
    texts = {name: compiled.asm[name] for name in TEXTS if name in compiled.asm}
    if "cubin" in compiled.asm:
        texts["sass"] = disassemble(compiled.asm["cubin"])
    return {
        **texts,
        "shared": compiled.metadata.shared,
        "tensor_memory": getattr(compiled.metadata, "tmem_size", None) or 0,
        "log": log.getvalue(),
        "triton": triton.__version__,
    }


def main(request: str, response: str) -> None:
    jobs, results = json.loads(Path(request).read_text()), []
    with tempfile.TemporaryDirectory() as folder:
        for i, job in enumerate(jobs):
            source = Path(folder) / f"kernel_{i}.py"
            source.write_text(job["source"])
            try:
                results.append(compile_job(source, job["target"]))
            except Exception as error:  # one source that Triton refuses does not stop the others
                results.append({"error": f"{type(error).__name__}: {error}"})
    Path(response).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
