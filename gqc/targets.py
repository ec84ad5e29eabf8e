"""The table of targets: what each machine can do, and how its kernels are tiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gqc.errors import GqcError
from gqc.formats.elements import CODEBOOKS, ELEMENTS

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

ANY = -1
"""Rows of the last bucket: any number."""


@dataclass(frozen=True)
class Tiling:
    """One bucket of rows: the output tile BM×BN, and the step BK of K (0: the format's block).

    panel: rows for which weights are decoded to memory once; 0: in registers, for each tile anew.
    paired: BN where a tile has to hold pairs of columns, of two weights that were merged, if that
    is more than BN.
    """

    rows: int
    bm: int
    bn: int
    bk: int
    warps: int = 1
    stages: int = 1
    panel: int = 0
    paired: int = 0


@dataclass(frozen=True)
class Tilings:
    """Buckets of rows, and those of codes of some widths, where they differ."""

    usual: tuple[Tiling, ...]
    wide: tuple[Tiling, ...] = ()
    widths: tuple[int, ...] = (5, 6, 7, 8)

    def of(self, bits: int) -> tuple[Tiling, ...]:
        """The buckets of a weight whose codes have so many bits."""
        return self.wide if self.wide and bits in self.widths else self.usual

    def of_one_step(self) -> Tilings:
        """The same with the least step for all buckets."""
        return replace(self, usual=of_one_step(self.usual), wide=of_one_step(self.wide))


def of_one_step(tilings: tuple[Tiling, ...]) -> tuple[Tiling, ...]:
    """The tilings with the least step that one of them has."""
    step = min((tiling.bk for tiling in tilings), default=0)
    return tuple(replace(tiling, bk=step) for tiling in tilings)


Formats = Mapping[str, tuple[str, ...]]
"""Elements that kernels decode, each with the formats of the scales (and of the floating-point zero
points) that they read beside it."""

WIDE = ("f16", "bf16", "f32")

DECODES: Formats = {
    **{e.name: WIDE for e in ELEMENTS.values() if e.is_integer},
    **dict.fromkeys(("f6E2M3FN", "f6E3M2FN"), ("f8E8M0FNU",)),
    **dict.fromkeys(("f8E4M3FN", "f8E5M2", "si8"), (*WIDE, "f8E8M0FNU")),
    "f4E2M1FN": ("f8E8M0FNU", "f8E4M3FN"),
    **{e.name: WIDE for e in CODEBOOKS},
}
"""What the kernels of every target decode."""


@dataclass(frozen=True)
class Target:
    """One row. `units` gives, for each float type its kernels multiply, the instruction."""

    name: str
    backend: str
    units: Mapping[str, str]
    layout: str
    lanes: int
    scale: str
    """Where the scale is applied: `before` the dot (to the weight) or `after` (to the sum)."""
    tilings: Tilings
    f32_tilings: Tilings | None = None
    """The same for activations in f32, where they differ."""
    matrix_rows: int = 0
    """Rows of x in bf16 that a CPU's matrix unit multiplies at once by a panel; 0: it has none."""
    programs: int = 1
    """How many programs a launch of few rows should have: K is split until there are so many."""
    nonkdim: int = 0
    """Rows and columns of one matrix instruction, for kernels that have to use the same one; 0: the
    compiler has no choice."""
    one_order: bool = False
    """Whether kernels of all buckets sum up K in one order."""

    def tilings_of(self, bits: int, element: str) -> tuple[Tiling, ...]:
        """The buckets of a weight whose codes have so many bits, by the activations' float type."""
        tilings = self.f32_tilings if element == "f32" and self.f32_tilings else self.tilings
        return tilings.of(bits)

    def in_one_order(self) -> Target:
        """The row whose kernels sum up K in one order: in steps of one size and no parts, with the
        scale in one place, and floats without a CPU's matrix unit, which sums them otherwise."""
        f32_tilings = None if self.f32_tilings is None else self.f32_tilings.of_one_step()
        return replace(
            self,
            tilings=self.tilings.of_one_step(),
            f32_tilings=f32_tilings,
            matrix_rows=0,
            programs=1,
            one_order=True,
        )

    def dots(self, element: str) -> bool:
        """Whether it has an instruction for dots of this float type, and not only of f32."""
        return self.units[element] != self.units["f32"]


def gpu(name: str, matrix_unit: str, *tilings: Tiling, nonkdim: int = 0) -> Target:
    units, buckets = {"f16": matrix_unit, "bf16": matrix_unit}, Tilings(tilings)
    return Target(name, "triton", units, "k_words", 1, "before", buckets, nonkdim=nonkdim)


PROGRAMS = 8
"""Of a CPU: for as many threads, or for fewer to have equal shares. On two cores, where this was
measured, more parts cost some percent."""


def cpu(
    name: str,
    f32: str,
    bf16: str,
    tilings: Tilings,
    f32_tilings: Tilings | None = None,
    matrix_rows: int = 0,
) -> Target:
    units = {"f32": f32, "bf16": bf16, "f16": f32}
    return Target(
        name,
        "cpu",
        units,
        "lane_words",
        64,
        "after",
        tilings,
        f32_tilings,
        matrix_rows,
        PROGRAMS,
    )


def nvidia(stages: int, middle: Tiling) -> tuple[Tiling, ...]:
    """Tiles at which no integer format spills registers, on Triton 3.6 and 3.9."""
    return (
        Tiling(16, 16, 64, 128, 4, stages),
        middle,
        Tiling(ANY, 128, 128, 64, 8, 3),
    )


LARGE_SHARED = nvidia(4, Tiling(64, 64, 128, 64, 4, 4))
SMALL_SHARED = nvidia(3, Tiling(64, 64, 64, 64, 4, 4))
"""For about 99 KB of shared memory a block."""
BLACKWELL = nvidia(4, Tiling(64, 64, 128, 64, 8, 4))

AMD = (
    Tiling(16, 16, 64, 128, 4, 2),
    Tiling(64, 64, 64, 64, 4, 2),
    Tiling(ANY, 128, 128, 64, 8, 2),
)

FEW = (Tiling(1, 1, 64, 0), Tiling(2, 2, 64, 0))
PANEL = Tiling(ANY, 4, 64, 0, panel=256)


def in_turns(four: Tiling, eight: Tiling) -> tuple[Tiling, ...]:
    """Buckets of 3 to 16 rows, by tiles of four rows and of eight: a tile decodes the weight once
    for its rows, and computes all of them, 16 where there are 9."""
    buckets = ((4, four), (8, eight), (12, four), (16, eight))
    return tuple(replace(tiling, rows=rows) for rows, tiling in buckets)


AVX512 = Tilings(
    usual=(*FEW, Tiling(16, 4, 64, 0), PANEL),
    wide=(*FEW, *in_turns(Tiling(4, 4, 32, 0), Tiling(8, 8, 32, 0)), PANEL),
)
EIGHT_F32 = Tiling(8, 8, 16, 0, paired=32)
"""Values of x are broadcast as they are loaded, so few columns cost nothing for each."""
AVX512_F32 = Tilings(
    usual=(*FEW, *in_turns(Tiling(4, 4, 64, 0), EIGHT_F32), PANEL),
    wide=(*FEW, *in_turns(Tiling(4, 4, 16, 0, paired=32), EIGHT_F32), PANEL),
    widths=(3, 5, 6, 7),  # those that are put together of several words
)
NARROW = Tilings(
    (
        Tiling(1, 1, 32, 0),
        Tiling(2, 2, 32, 0),
        Tiling(16, 4, 16, 0),
        Tiling(ANY, 4, 16, 0, panel=256),
    )
)

TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        gpu("sm_80", "mma.sync", *LARGE_SHARED),
        gpu("sm_86", "mma.sync", *SMALL_SHARED),
        gpu("sm_89", "mma.sync", *SMALL_SHARED),
        gpu("sm_90", "wgmma", *LARGE_SHARED),
        gpu("sm_100", "tcgen05.mma", *BLACKWELL),
        gpu("sm_103", "tcgen05.mma", *BLACKWELL),
        gpu("sm_120", "mma.sync", *SMALL_SHARED),
        gpu("gfx942", "v_mfma", *AMD, nonkdim=16),
        gpu("gfx950", "v_mfma", *AMD, nonkdim=16),
        cpu("cpu_amx", "vfmadd", "vdpbf16ps or tdpbf16ps", AVX512, AVX512_F32, 32),
        cpu("cpu_avx512bf16", "vfmadd", "vdpbf16ps", AVX512, AVX512_F32),
        cpu("cpu_cooperlake", "vfmadd", "vdpbf16ps", AVX512, AVX512_F32),
        cpu("cpu_avx512vnni", "vfmadd", "vfmadd", AVX512, AVX512_F32),
        cpu("cpu_avx512", "vfmadd", "vfmadd", AVX512, AVX512_F32),
        cpu("cpu_avxvnni", "vfmadd", "vfmadd", NARROW),
        cpu("cpu_avx2", "vfmadd", "vfmadd", NARROW),
        cpu("cpu_neon", "fmla", "fmla", NARROW),
        cpu("cpu_portable", "multiply-add", "multiply-add", NARROW),
    )
}


def resolve(name: str, model: nn.Module | ExportedProgram | None = None) -> Target:
    """The row of a target. `cpu` is this machine's CPU; `auto` is where the model's parameters lie.

    Raises GqcError on a name that is not in the table, and where `auto` finds no row.
    """
    if name == "auto":
        name = target_of(model)
    if name == "cpu":
        from gqc.codegen.cpu.isa import host

        name = f"cpu_{host().name}"
    if name not in TARGETS:
        known = ", ".join(("auto", "cpu", *TARGETS))
        raise GqcError(f"unknown target {name!r}: choose one of {known}")
    return TARGETS[name]


def target_of(model: nn.Module | ExportedProgram | None) -> str:
    """Name of the target on which the parameters of a model lie, or else its buffers, or `cpu`."""
    tensors = [] if model is None else [*model.parameters()] or [*model.buffers()]
    devices = dict.fromkeys(t.device for t in tensors)
    names = {name_of(device) for device in devices} or {"cpu"}
    if len(names) > 1:
        places = " and ".join(map(str, devices))
        raise GqcError(f"the model lies on {places}: move it to one device, or give target=")
    return names.pop()


def name_of(device: torch.device) -> str:
    """Name of a device's target."""
    if device.type in ("cpu", "meta"):
        return "cpu"
    if device.type != "cuda":
        raise GqcError(f"no target is made for the model's device {device}: give target=")
    import torch

    if torch.version.hip:
        return nearest(torch.cuda.get_device_properties(device).gcnArchName.split(":")[0])
    major, minor = torch.cuda.get_device_capability(device)
    return nearest(f"sm_{major}{minor}")


def nearest(gpu: str) -> str:
    """The row for a GPU: of its family (all but the last digit), the newest that it can run."""
    rows = [name for name in TARGETS if name[:-1] == gpu[:-1] and name <= gpu]
    if not rows:
        raise GqcError(
            f"no target is made for this GPU, {gpu}: give target=, one of {', '.join(TARGETS)}"
        )
    return max(rows)
