"""Compile kernels for the host with LLVM, and call them on tensors.

Object code is kept on disk (`cache`), under a key of all it depends on: the kernel's IR, the
instruction set tier, the host CPU, the LLVM that compiled it, and the code of this package.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache as once
from importlib import resources
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import llvmlite
from llvmlite import binding

from gqc.codegen.cpu import cache
from gqc.codegen.cpu.isa import Isa, host_features, missing
from gqc.codegen.cpu.llvm_printer import print_module
from gqc.codegen.cpu.lowering import lower
from gqc.codegen.cpu.threads import OPENMP
from gqc.dialects.tile import KernelOp, shape_of
from gqc.errors import GqcError
from gqc.first_calls import LOCK

if TYPE_CHECKING:
    from torch import Tensor

CROSS = {"aarch64": "aarch64-unknown-linux-gnu"}
"""Machines that code can be made for on any host, to be read or emulated."""


def llvm_text(kernel: KernelOp, isa: Isa) -> str:
    """The kernel as LLVM IR text, before optimization."""
    return print_module(lower(kernel, isa))


def foreign(isa: Isa) -> str | None:
    """The machine of a tier, if this process does not run on it."""
    here = isa.machine is None or binding.get_process_triple().startswith(isa.machine)
    return None if here else isa.machine


@once
def target_machine(isa: Isa, machine: str | None = None) -> binding.TargetMachine:
    """LLVM's code generator: the host restricted to a tier, or another machine."""
    if machine is not None:
        binding.initialize_all_targets()
        binding.initialize_all_asmprinters()
        target = binding.Target.from_triple(CROSS[machine])
        features = ",".join(f"+{feature}" for feature in isa.needs)
        return target.create_target_machine("generic", features, opt=3, reloc="pic")
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_triple(binding.get_process_triple())
    return target.create_target_machine(
        cpu=binding.get_host_cpu_name(), features=features_of(isa), opt=3, reloc="pic"
    )


def features_of(isa: Isa) -> str:
    """The host's features, in LLVM's spelling, less those that the tier goes without.

    A tier above the host's has its own, for code to look at.
    """
    found = {**host_features(), **dict.fromkeys(isa.needs, True)}
    kept = {name: on and name not in isa.excludes for name, on in found.items()}
    return ",".join(f"{'+' if on else '-'}{name}" for name, on in sorted(kept.items()))


def optimized(text: str, machine: binding.TargetMachine) -> binding.ModuleRef:
    """LLVM's simplification of functions, without what would undo the kernel's own blocking.

    At level 1: higher ones take a third longer, and give the same code but for its order and, in
    some kernels, a few instructions. The whole pipeline takes twice as long for the same loops.
    """
    module = binding.parse_assembly(text)
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    options = binding.create_pipeline_tuning_options(speed_level=1)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    builder = binding.create_pass_builder(machine, options)
    passes = builder.getFunctionPassManager()
    for function in module.functions:
        if not function.is_declaration:
            passes.run(function, builder)
    return module


def assembly(kernel: KernelOp, isa: Isa, machine: str | None) -> str:
    """Assembly of a kernel for the host, or for a machine of `CROSS`."""
    with LOCK:
        target = target_machine(isa, machine)
        return target.emit_assembly(optimized(llvm_text(kernel, isa), target))


# Object code


@once
def sources() -> str:
    """Digest of the sources that lowering runs: this package, and the formats it decodes."""
    digest = hashlib.sha256()
    for package in ("gqc.codegen.cpu", "gqc.formats"):
        for file in sorted(resources.files(package).iterdir(), key=lambda file: file.name):
            if file.name.endswith(".py"):
                digest.update(file.read_bytes())
    return digest.hexdigest()


def cache_key(kernel: KernelOp, isa: Isa) -> bytes:
    parts = (
        str(kernel),
        isa.name,
        binding.get_process_triple(),
        binding.get_host_cpu_name(),
        features_of(isa),
        version("xdsl"),
        llvmlite.__version__,
        str(binding.llvm_version_info),
        sources(),
    )
    return "\0".join(parts).encode()


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection inside: it passes over all that torch has loaded, which takes longer
    than to compile a kernel, and IR holds few cycles that outlive it. Under the lock, for two
    threads that switch it off and on at once could leave it off."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def object_code(kernel: KernelOp, isa: Isa, key: bytes) -> bytes:
    """Object code from the disk, or compiled now."""
    code = cache.read(key)
    if code is None:
        machine = target_machine(isa)
        with uncollected():
            text = llvm_text(kernel, isa)
        code = machine.emit_object(optimized(text, machine))
        cache.write(key, code)
    return code


# Linking


@dataclass(frozen=True, eq=False)
class Code:
    """A function of object code in this process. LLVM frees the code with `owners`, so whatever
    holds the address holds this too."""

    address: int
    owners: tuple[Any, ...]


def link(name: str, code: bytes, symbols: Mapping[str, int]) -> Code:
    """Object code in this process, and its function of a name.

    `symbols` are the addresses of what it imports. Each kernel has a linker of its own (half a
    millisecond), so names never meet.
    """
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    linker = binding.create_lljit_compiler()
    library = binding.JITLibraryBuilder().add_object_img(code).export_symbol(name)
    for symbol, address in symbols.items():
        library.import_symbol(symbol, address)
    tracker = library.link(linker, name)
    return Code(tracker[name], (linker, tracker))


@once
def openmp() -> dict[str, int]:
    """Addresses of the OpenMP functions of the library that torch has loaded.

    After a fork this process runs torch and kernels on one thread: the child has none of its
    parent's threads, and the library would wait for them forever.

    Raises GqcError if torch came with an OpenMP library without the GNU interface.
    """
    import torch  # which loads it

    try:
        library = ctypes.CDLL(None)
        functions = {name: getattr(library, name) for name in OPENMP}
    except (AttributeError, TypeError) as error:
        raise GqcError(f"this torch has no GNU OpenMP to run CPU kernels on: {error}") from error
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
    return {name: ctypes.cast(f, ctypes.c_void_p).value or 0 for name, f in functions.items()}


linked: dict[bytes, Code] = {}
"""What `link` gave, by cache key; filled under the lock."""


def code_of(kernel: KernelOp, isa: Isa) -> Code:
    """The kernel's function, compiled and linked into this process once, from any thread."""
    with LOCK:
        key = cache_key(kernel, isa)
        if key not in linked:
            linked[key] = link(kernel.sym_name.data, object_code(kernel, isa, key), openmp())
        return linked[key]


def load(kernel: KernelOp, isa: Isa) -> Callable[..., None]:
    """A function of tensors, in the order of the kernel's arguments, that runs it.

    The tensors must be contiguous, on the CPU and of the kernel's types and shapes, but that rows
    may have any; only their number and the size of y beside x are checked (ValueError). Any thread
    may call it. The GIL is released while the kernel runs, on `torch.get_num_threads()` threads.
    Raises GqcError if this machine lacks the tier.
    """
    if lacking := missing(isa):
        raise GqcError(f"this machine lacks {', '.join(lacking)}: it cannot run {isa.name} code")
    arguments = kernel.body.block.args
    signature = [*[ctypes.c_void_p] * len(arguments), ctypes.c_int64]
    code = code_of(kernel, isa)
    function: Any = ctypes.CFUNCTYPE(None, *signature)(code.address)
    function.code = code  # which lives as long as what calls it
    name, (_, columns) = kernel.sym_name.data, shape_of(arguments[0])
    width = shape_of(arguments[-1])[1]

    def run(*tensors: Tensor) -> None:
        rows = tensors[0].numel() // columns
        if len(tensors) != len(arguments) or tensors[-1].numel() != rows * width:
            raise ValueError(
                f"{name} takes {len(arguments)} tensors, x [M, {columns}] first and y [M, {width}] "
                f"last, not {[tuple(t.shape) for t in tensors]}"
            )
        function(*[t.data_ptr() for t in tensors], rows)

    return run
