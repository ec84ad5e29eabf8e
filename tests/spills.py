"""Vector registers that kernels for CPUs keep on the stack within loops, as LLVM notes them.

    python tests/spills.py [TIER…]

counts those of every scheme on every tier, or on some, and rewrites their part of `spills.json`,
the table of kernels that have any; it takes minutes. Code is that of one CPU of each tier,
whichever runs this.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from llvmlite import binding
from xdsl.parser import Parser

from gqc.codegen.cpu import jit
from gqc.codegen.cpu.isa import ISAS
from gqc.dialects.text import context
from gqc.dialects.tile import KernelOp
from gqc.passes.fold_weights import FoldWeights
from gqc.passes.pipeline import pipeline

TABLE = Path(__file__).with_name("spills.json")

CPUS = {
    "amx": "sapphirerapids",
    "avx512bf16": "znver4",
    "cooperlake": "cooperlake",
    "avx512vnni": "cascadelake",
    "avx512": "skylake-avx512",
    "avxvnni": "alderlake",
    "avx2": "haswell",
}

WEIGHTS = (
    *(f"int{bits}_g{group}" for bits in range(1, 9) for group in (32, 128)),
    *("int4_g128_sym", "int8_row_sym", "w4a16_mxfp4", "w4a16_nvfp4"),
    *("w6a16_mxfp6", "w8a16_mxfp8", "w8a16_mxint8"),
)
"""Schemes whose activations are floats."""
BOTH = (
    *(f"w{bits}a8_g{group}" for bits in (2, 3, 4, 8) for group in (32, 128)),
    *("w4a8_g32_asym", "mxfp4", "mxfp8", "mxint8", "nvfp4"),
)
"""Schemes that quantize activations."""

LAYER = """
func.func @forward(%x : tensor<?x1024x{0}>) -> tensor<?x128x{0}> {{
  %w = gq.weight @weight : tensor<128x1024x{0}>
  %y = gq.matmul_t %x, %w : (tensor<?x1024x{0}>, tensor<128x1024x{0}>) -> tensor<?x128x{0}>
  func.return %y : tensor<?x128x{0}>
}}
"""


def kernels_of(tier: str, scheme: str, activation: str) -> list[KernelOp]:
    """The kernels of a layer, for every bucket of rows; those of few rows are not AMX's own."""
    module = Parser(context(), LAYER.format(activation)).parse_module()
    for stage in pipeline((f"*={scheme}",), f"cpu_{tier}"):
        for pass_ in stage.passes:
            if not isinstance(pass_, FoldWeights):  # it wants the weight itself
                pass_.apply(context(), module)
    kernels = [op for op in module.walk() if isinstance(op, KernelOp)]
    return [k for k in kernels if tier != "amx" or is_of_many_rows(k)]


def is_of_many_rows(kernel: KernelOp) -> bool:
    return name_of(kernel).startswith("matmul") and name_of(kernel).endswith("_any")


def name_of(kernel: KernelOp) -> str:
    return kernel.sym_name.data


@cache
def machine_of(tier: str) -> binding.TargetMachine:
    """A code generator for a CPU of a tier, on any machine."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    row = ISAS[tier]
    features = [*(f"+{name}" for name in row.needs), *(f"-{name}" for name in row.excludes)]
    machine = binding.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(
        CPUS[tier], ",".join(features), opt=3, reloc="pic"
    )
    machine.set_asm_verbosity(True)
    return machine


def annotated(kernel: KernelOp, tier: str) -> str:
    """Assembly of a kernel for a tier, with LLVM's comments: loops, spills."""
    machine = machine_of(tier)
    return machine.emit_assembly(jit.optimized(jit.llvm_text(kernel, ISAS[tier]), machine))


# Assembly


BLOCK = re.compile(r"\.LBB\w+:|# %bb\.|\S+:")
HEADER = re.compile(r"This (?:Inner )?Loop Header: Depth=")
MEMBER = re.compile(r"in Loop: Header=(BB\w+)")
VECTOR_SPILL = re.compile(r"(?:16|32|64)-byte (?:Folded )?(?:Spill|Reload)")


def loops_of(text: str) -> dict[str, list[str]]:
    """Lines of each loop by the label of its header, without those of loops in it."""
    loops: dict[str, list[str]] = {}
    for block in blocks_of(text):
        comments = "\n".join(line for line in block if "#" in line)
        if HEADER.search(comments):
            label = block[0].split(":")[0].removeprefix(".L")
            loops.setdefault(label, []).extend(block)
        elif member := MEMBER.search(comments):
            loops.setdefault(member[1], []).extend(block)
    return loops


def blocks_of(text: str) -> list[list[str]]:
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if BLOCK.match(line):
            blocks.append([])
        blocks[-1].append(line)
    return blocks


def spills_in_loops(text: str) -> int:
    """Vectors that loops write to the stack and read from it, for want of registers."""
    return sum(bool(VECTOR_SPILL.search(s)) for loop in loops_of(text).values() for s in loop)


# The table


def spills(tier: str, scheme: str, activation: str) -> dict[str, int]:
    """Spills in loops of the kernels of a layer, by tier and name."""
    kernels = kernels_of(tier, scheme, activation)
    return {f"{tier} {name_of(k)}": spills_in_loops(annotated(k, tier)) for k in kernels}


def every(tier: str) -> Iterator[tuple[str, str, str]]:
    """All that `spills` can be asked of a tier; VNNI is of no use to floats."""
    for activation in ("bf16", "f32"):
        if tier not in ("avx512vnni", "avxvnni") and (tier != "amx" or activation == "bf16"):
            yield from ((tier, scheme, activation) for scheme in WEIGHTS)
    yield from ((tier, scheme, "bf16") for scheme in BOTH)


def llvm() -> str:
    """The version that counts are of: another one has others."""
    return "LLVM " + ".".join(map(str, binding.llvm_version_info[:2]))


def known() -> dict[str, int] | None:
    """The table of this LLVM, if there is one."""
    return json.loads(TABLE.read_text()).get(llvm())


def main(tiers: list[str]) -> None:
    table = {k: n for k, n in (known() or {}).items() if k.split()[0] not in tiers}
    for tier in tiers:
        for case in every(tier):
            table |= {name: count for name, count in spills(*case).items() if count}
            print(*case, flush=True)
    TABLE.write_text(json.dumps({llvm(): dict(sorted(table.items()))}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or list(CPUS))
