"""The table of CPU instruction set tiers: what a vector is, and which instructions make it fast.

Every tier runs the same lowering; a tier only says how wide a vector is and names the LLVM
intrinsics it may use. `portable` uses none: generic LLVM vectors of 128 bits, on any CPU.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from dataclasses import dataclass, replace
from functools import cache

from gqc.errors import GqcError


@dataclass(frozen=True)
class Isa:
    """One row of the table."""

    name: str
    lanes: int
    """f32 lanes of one vector."""
    needs: tuple[str, ...] = ()
    """CPU features (LLVM's names) that a host must have."""
    excludes: tuple[str, ...] = ()
    """CPU features switched off, so that a lower tier is what it says on any host."""
    permute_f32: str | None = None
    """Intrinsic (table, indices) that looks up f32 lanes; it ignores high bits of an index."""
    permute_i16: str | None = None
    """The same on 16-bit lanes, twice as many."""
    permute2_i16: str | None = None
    """Intrinsic (table, indices, table) that looks up 16-bit lanes of two registers."""
    permute2_i8: str | None = None
    """The same on bytes, four times as many as f32 lanes."""
    dot_bf16: str | None = None
    """Intrinsic (acc, a, b): f32 lanes += dot of bf16 pairs; subnormals count as zeros."""
    tile_dot_bf16: str | None = None
    """The same of AMX's tiles (acc, a, b), where x and the weight lie in memory."""
    tile_dot_s8u8: str | None = None
    """The same of signed bytes by unsigned ones."""
    dot_u8s8: str | None = None
    """Intrinsic (acc, a, b): i32 lanes += dot of four unsigned bytes and four signed ones."""
    dot_s8s8: str | None = None
    """The same of signed bytes."""
    madd_u8s8: str | None = None
    """Intrinsic (a, b): i16 lanes of dots of two unsigned bytes and two signed ones, saturated."""
    madd_i16: str | None = None
    """Intrinsic (a, b): i32 lanes of dots of i16 pairs."""
    registers: int = 32
    """Vector registers."""
    machine: str | None = None
    """The architecture, where it is not any that LLVM runs on: a row of `jit.CROSS` elsewhere."""
    fma: bool = True
    """Whether a fused multiply-add is one instruction (else LLVM decides)."""

    @property
    def table_bits(self) -> int:
        """Widest code that one f32 look-up decodes."""
        return self.lanes.bit_length() - 1 if self.permute_f32 else 0

    @property
    def pair_table_bits(self) -> int:
        """The same of a look-up of 16-bit lanes."""
        return self.lanes.bit_length() if self.permute_i16 else 0

    def decodes_pairs(self, bits: int) -> bool:
        """Whether look-ups decode codes of a width to pairs of bf16: a table has as many entries as
        a register halves, twice as many in one of two registers, and there may be two of these."""
        if bits == 8:
            return self.permute2_i8 is not None
        return bits <= self.pair_table_bits + 2 * bool(self.permute2_i16)


_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
_NO_BF16 = ("avx512bf16", "avx512fp16")
_NO_VNNI = ("avx512vnni", "avxvnni", "avxvnniint8", "avxvnniint16")
_NO_AVX512 = (
    *_NO_BF16,
    *("avx512bitalg", "avx512vp2intersect", "avx512vpopcntdq", "avx512vbmi2", "avx512vbmi"),
    *("avx512vnni", "avx512ifma", "avx512cd", "avx512dq", "avx512bw", "avx512vl", "avx512f"),
)
_NO_SVE = ("sve",)
"""Without it there is none of what extends it."""

_COOPER_LAKE = Isa(
    "cooperlake",
    lanes=16,
    needs=(*_AVX512, "avx512vnni", "avx512bf16"),
    excludes=("avx512vbmi", "avx512vbmi2", "avx512fp16"),
    permute_f32="llvm.x86.avx512.permvar.sf.512",
    permute_i16="llvm.x86.avx512.permvar.hi.512",
    permute2_i16="llvm.x86.avx512.vpermi2var.hi.512",
    dot_bf16="llvm.x86.avx512bf16.dpbf16ps.512",
    dot_u8s8="llvm.x86.avx512.vpdpbusd.512",
)
_AVX512BF16 = replace(
    _COOPER_LAKE,
    name="avx512bf16",
    needs=(*_COOPER_LAKE.needs, "avx512vbmi"),
    excludes=(),
    permute2_i8="llvm.x86.avx512.vpermi2var.qi.512",
)

ISAS: dict[str, Isa] = {
    isa.name: isa
    for isa in [
        replace(
            _AVX512BF16,
            name="amx",
            needs=(*_AVX512BF16.needs, "amx-tile", "amx-bf16", "amx-int8"),
            tile_dot_bf16="llvm.x86.tdpbf16ps",
            tile_dot_s8u8="llvm.x86.tdpbsud",
        ),
        _AVX512BF16,
        _COOPER_LAKE,
        Isa(
            "avx512vnni",
            lanes=16,
            needs=(*_AVX512, "avx512vnni"),
            excludes=_NO_BF16,
            permute_f32="llvm.x86.avx512.permvar.sf.512",
            dot_u8s8="llvm.x86.avx512.vpdpbusd.512",
        ),
        Isa(
            "avx512",
            lanes=16,
            needs=_AVX512,
            excludes=(*_NO_BF16, *_NO_VNNI),
            permute_f32="llvm.x86.avx512.permvar.sf.512",
            madd_u8s8="llvm.x86.avx512.pmaddubs.w.512",
            madd_i16="llvm.x86.avx512.pmaddw.d.512",
        ),
        Isa(
            "avxvnni",
            lanes=8,
            registers=16,
            needs=(*_AVX2, "avxvnni"),
            excludes=_NO_AVX512,
            permute_f32="llvm.x86.avx2.permps",
            dot_u8s8="llvm.x86.avx512.vpdpbusd.256",
        ),
        Isa(
            "avx2",
            lanes=8,
            registers=16,
            needs=_AVX2,
            excludes=(*_NO_AVX512, *_NO_VNNI),
            permute_f32="llvm.x86.avx2.permps",
            madd_u8s8="llvm.x86.avx2.pmadd.ub.sw",
            madd_i16="llvm.x86.avx2.pmadd.wd",
        ),
        Isa(
            "neon",
            lanes=4,
            needs=("neon", "dotprod"),
            excludes=_NO_SVE,
            dot_s8s8="llvm.aarch64.neon.sdot.v4i32.v16i8",
            machine="aarch64",
        ),
        Isa(
            "portable",
            lanes=4,
            registers=16,
            excludes=(*_NO_AVX512, *_NO_VNNI, *_NO_SVE),
            fma=False,
        ),
    ]
}
"""The tiers, best first."""


def missing(isa: Isa) -> list[str]:
    """What a tier needs and this machine lacks: features, or the system's leave to use tiles."""
    features = host_features()
    lacking = [feature for feature in isa.needs if not features.get(feature, False)]
    if not lacking and isa.tile_dot_bf16 and not may_use_tiles():
        return ["the system's leave to use AMX tiles"]
    return lacking


def host_features() -> dict[str, bool]:
    """What this machine's CPU has, by LLVM's names. Of what Linux tells of an ARM CPU, LLVM 22
    passes on few, and not dot products."""
    from llvmlite import binding

    found = dict(binding.get_host_cpu_features())
    return found | {"dotprod": True} if has_dot_products() else found


HARDWARE_CAPABILITIES, DOT_PRODUCTS = 16, 1 << 20
"""Linux on AArch64: `AT_HWCAP` of what it tells a process, and its bit `HWCAP_ASIMDDP`."""


def has_dot_products() -> bool:
    """Whether Linux says that an ARM CPU has `sdot` (kernel.org, arch/arm64/elf_hwcaps.rst)."""
    if (sys.platform, platform.machine()) != ("linux", "aarch64"):
        return False
    told = ctypes.CDLL(None).getauxval
    told.argtypes, told.restype = [ctypes.c_ulong], ctypes.c_ulong
    return told(HARDWARE_CAPABILITIES) & DOT_PRODUCTS != 0


ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18
"""Linux on x86-64: a system call, its request, and what is asked for."""


@cache
def may_use_tiles() -> bool:
    """Ask Linux for the use of AMX's tiles, once a process and for all its threads: without, the
    first instruction kills it (kernel.org, arch/x86/xstate.rst)."""
    if sys.platform != "linux":
        return False
    system_call = ctypes.CDLL(None).syscall
    system_call.argtypes, system_call.restype = [ctypes.c_long] * 3, ctypes.c_long
    return system_call(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) == 0


def host() -> Isa:
    """The best tier of which this machine lacks nothing."""
    return next(isa for isa in ISAS.values() if not missing(isa))


def resolve(name: str | None, target: str | None = None) -> Isa:
    """The tier of that name; `host` is the best one this machine has.

    Without a name it is the tier of a kernel's target (`cpu_avx2`), and without that the host's.
    Raises GqcError if there is no tier of that name.
    """
    if name is None:
        name = (target or "").removeprefix("cpu_") or "host"
    if name in ("host", "cpu"):
        return host()
    if name not in ISAS:
        raise GqcError(f"no CPU tier is called {name!r}: use host, {', '.join(ISAS)}")
    return ISAS[name]
