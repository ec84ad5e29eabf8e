"""AArch64 by Unicorn, which is QEMU's emulator, for kernels of NEON on other CPUs.

A kernel is compiled for its tier and linked in this process, where the emulator reads its code and
constants. Arrays are copied, each up to a page that may not be touched, and copied back.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence

from torch import Tensor
from unicorn import (
    UC_ARCH_ARM64,
    UC_HOOK_MEM_FETCH_UNMAPPED,
    UC_HOOK_MEM_READ_UNMAPPED,
    UC_MEM_FETCH_UNMAPPED,
    UC_MODE_ARM,
    UC_PROT_EXEC,
    UC_PROT_READ,
)
from unicorn.arm64_const import (
    UC_ARM64_REG_LR,
    UC_ARM64_REG_SP,
    UC_ARM64_REG_X0,
    UC_CPU_ARM64_MAX,
)
from unicorn.unicorn import Uc

from gqc.codegen.cpu import jit
from gqc.codegen.cpu.isa import Isa
from gqc.dialects.tile import KernelOp, shape_of
from gqc.first_calls import LOCK

PAGE = 4096
RUNTIME, ARRAYS = 0x10000, 0x1000000
"""Addresses of what kernels import, and of the first array."""
STACK_BYTES = 1 << 20
"""Threads may have no more."""

SLOT = 32
IMPORTS = {
    "GOMP_parallel": (0xAA0003E8, 0xAA0103E0, 0xD61F0100),  # mov x8, x0; mov x0, x1; br x8
    "omp_get_thread_num": (0x52800000, 0xD65F03C0),  # mov w0, #0; ret
    "omp_get_num_threads": (0x52800020, 0xD65F03C0),  # mov w0, #1; ret
    # mov x3, x0; cbz x2, 16; strb w1, [x3], #1; sub x2, x2, #1; b -12; ret
    "memset": (0xAA0003E3, 0xB4000082, 0x38001461, 0xD1000442, 0x17FFFFFD, 0xD65F03C0),
}
"""Machine code, `SLOT` bytes a function, of the memory's and of an OpenMP of one thread."""
RETURN = RUNTIME + SLOT * len(IMPORTS)
"""Where kernels return to, which ends the run."""


def load(kernel: KernelOp, isa: Isa) -> Callable[..., None]:
    """A function of tensors, in the order of the kernel's arguments, that emulates the kernel.

    It raises UcError where the kernel reaches beyond an array, or an instruction is unknown.
    """
    target, name = jit.target_machine(isa, isa.machine), kernel.sym_name.data
    with LOCK, jit.uncollected():
        text = jit.llvm_text(kernel, isa)
    code = target.emit_object(jit.optimized(text, target))
    symbols = {symbol: RUNTIME + SLOT * n for n, symbol in enumerate(IMPORTS)}
    linked = jit.link(name, code, symbols)
    columns = shape_of(kernel.body.block.args[0])[1]

    def run(*tensors: Tensor) -> None:
        assert all(tensor.is_contiguous() for tensor in tensors)
        machine = emulator(linked.address, len(code))
        call(machine, linked.address, tensors, tensors[0].numel() // columns)

    return run


def emulator(address: int, size: int) -> Uc:
    """A machine that runs linked code: it reads this process's memory where that asks for it, which
    it does relative to itself, but takes no instructions beyond the code's size from its address.
    """
    machine = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
    machine.ctl_set_cpu_model(UC_CPU_ARM64_MAX)

    def asked(machine: Uc, access: int, place: int, *_: object) -> bool:
        reach = size if access == UC_MEM_FETCH_UNMAPPED else 1 << 32
        if abs(place - address) >= reach:
            return False
        page = place - place % PAGE
        machine.mem_map_ptr(page, PAGE, UC_PROT_READ | UC_PROT_EXEC, page)
        return True

    machine.hook_add(UC_HOOK_MEM_FETCH_UNMAPPED | UC_HOOK_MEM_READ_UNMAPPED, asked)
    machine.mem_map(RUNTIME, PAGE)
    words = [struct.pack(f"<{len(f)}I", *f).ljust(SLOT, b"\0") for f in IMPORTS.values()]
    machine.mem_write(RUNTIME, b"".join(words))
    return machine


def call(machine: Uc, address: int, tensors: Sequence[Tensor], rows: int) -> None:
    """Call a kernel as AAPCS64 does: eight arguments in registers, the others on the stack."""
    pointers, end = copied(machine, tensors)
    arguments = [*pointers, rows]
    registers, others = arguments[:8], arguments[8:]
    machine.mem_map(end, STACK_BYTES)
    stack = end + STACK_BYTES - 16 * -(-len(others) // 2)
    machine.mem_write(stack, struct.pack(f"<{len(others)}q", *others))
    machine.reg_write(UC_ARM64_REG_SP, stack)
    machine.reg_write(UC_ARM64_REG_LR, RETURN)
    for number, value in enumerate(registers):
        machine.reg_write(UC_ARM64_REG_X0 + number, value)
    machine.emu_start(address, RETURN)
    for tensor, pointer in zip(tensors, pointers, strict=True):
        found = bytes(machine.mem_read(pointer, tensor.nbytes))
        ctypes.memmove(tensor.data_ptr(), found, tensor.nbytes)


def copied(machine: Uc, tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """Addresses of copies of tensors in the emulator's memory, and one beyond them.

    Each ends before a page that may not be touched; it begins after bytes of ones, and such a page.
    """
    pointers, place = [], ARRAYS
    for tensor in tensors:
        size = -(-tensor.nbytes // PAGE) * PAGE
        if size:
            machine.mem_map(place, size)
            content = ctypes.string_at(tensor.data_ptr(), tensor.nbytes)
            machine.mem_write(place, content.rjust(size, b"\xff"))
        pointers.append(place + size - tensor.nbytes)
        place += size + PAGE
    return pointers, place
