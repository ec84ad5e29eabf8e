"""Each gate passes a good kernel and sees its fault; the static figure is the formula's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gqc.codegen.triton import KernelArtifacts, check, compile_many, emit
from gqc.codegen.triton.disassembly import main_loop
from gqc.codegen.triton.gates import GATES, judge
from gqc.codegen.triton.machines import MACHINES
from gqc.codegen.triton.roofline import estimate
from gqc.codegen.triton.source import read_source
from gqc.errors import GqcError

from .scaled_kernel import SOURCE

INT4 = "1x128 : f16 : ui4"
Built = dict[str, KernelArtifacts]


@pytest.fixture(scope="module")
def built(build) -> Built:
    """Hopper: int4 for 16 rows. The others: block-scaled fp8."""
    hopper = emit(build(INT4, 4096, 4096)[0])
    jobs = [(hopper, "sm_90"), *((SOURCE, t) for t in ("sm_100", "sm_120", "gfx950"))]
    return {a.target: a for a in compile_many(jobs)}


def faults(kernel: KernelArtifacts) -> dict[str, str]:
    return {v.gate.name: v.fault for v in judge(kernel) if v.fault is not None}


def test_good_kernels_pass(built: Built) -> None:
    for target in ("sm_90", "sm_120"):
        assert faults(built[target]) == {}


def test_linear_scales_are_read_one_by_one_on_cdna4(built: Built) -> None:
    (gate, fault), *others = faults(built["gfx950"]).items()
    assert (gate, others) == ("scales by words", [])
    assert fault == "6 scales a step are read one by one (ds_read_u8)"


def test_scales_through_registers_serialise_tcgen05(built: Built) -> None:
    found = faults(built["sm_100"])
    assert found.keys() == {"scales by tcgen05.cp", "asynchronous MMA"}
    assert len(check(built["sm_100"])) == 2


def test_pipelined_tcgen05_passes(built: Built) -> None:
    """The wait moved before the next step's MMA; scales copied by UTCCP."""
    kernel = built["sm_100"]
    assert kernel.sass is not None
    ttgir = kernel.ttgir.replace("ttng.wait_barrier", "ttng.other")
    sass = kernel.sass.replace("STTM", "UTCCP")
    assert faults(replace(kernel, ttgir=ttgir, sass=sass)) == {}
    bare = kernel.sass.replace("STTM", "NOP")
    assert "no tcgen05.cp" in faults(replace(kernel, sass=bare))["scales by tcgen05.cp"]


def hopper_faults(k: KernelArtifacts) -> list[tuple[KernelArtifacts, str, str]]:
    assert k.sass is not None and k.ptx is not None
    spilled = k.sass.replace("HGMMA", "STL", 1)
    product = next(line for line in k.sass.splitlines() if "HGMMA" in line)
    head = product.split(" R", 1)[0]
    both = head + " R24, gdesc[UR4], gdesc[UR8], R24 ;"
    other = replace(k.source, matrix="mxf4")
    quantizer = replace(k.source, matrix="none")
    return [
        (replace(k, shared=232449), "shared memory", "232449 bytes of shared memory, of 232448"),
        (replace(k, sass="        /*0000*/  STG.E [R2], R4 ;"), "whole kernel", "stub of 1"),
        (replace(k, sass=k.sass.replace("STG", "NOP")), "whole kernel", "stores nothing"),
        (replace(k, matrix_instructions={}), "matrix instruction", "no HGMMA: found none"),
        (
            replace(k, matrix_instructions={"HGMMA.64x16x16.F32": 8, "HMMA.16816.F32": 8}),
            "matrix instruction",
            "HMMA.16816.F32 beside HGMMA",
        ),
        (replace(k, source=other), "matrix instruction", "sm_90 has no mxf4: found HGMMA"),
        (replace(k, source=quantizer), "matrix instruction", "multiplies matrices: HGMMA"),
        (replace(k, spills=8), "no spills", "8 spilled"),
        (replace(k, sass=spilled), "no spills", "1 loads and stores of local memory"),
        (replace(k, warnings=["C7515: wgmma serialized"]), "no warnings", "warns: C7515"),
        (replace(k, sass=k.sass.replace(product, both)), "wgmma from registers", "of 8 HGMMA"),
        (replace(k, sass=k.sass.replace("LDGSTS", "STS")), "codes stay in registers", "(STS)"),
        (
            replace(k, ptx=k.ptx.replace("], 0x10,", "], 0x4,")),
            "128-bit loads",
            "w by 32 bits, could be 128",
        ),
    ]


def test_each_gate_sees_its_fault(built: Built) -> None:
    seen = set()
    for kernel, gate, fault in hopper_faults(built["sm_90"]):
        assert fault in faults(kernel)[gate]
        seen.add(gate)
    columns = replace(built["sm_100"], tensor_memory=513)
    assert faults(columns)["tensor memory"] == "513 columns of tensor memory, of 512"
    seen |= {"tensor memory", "scales by tcgen05.cp", "asynchronous MMA", "scales by words"}
    assert seen == {gate.name for gate in GATES}


def test_a_noted_gate_fails_no_kernel(built: Built) -> None:
    kernel = built["sm_90"]
    assert kernel.sass is not None
    stored = replace(kernel, sass=kernel.sass.replace("LDGSTS", "STS"))
    assert "codes stay in registers" in faults(stored) and check(stored) == []


def test_narrow_loads_of_amd(built: Built) -> None:
    kernel = built["gfx950"]
    assert kernel.amdgcn is not None
    narrow = replace(kernel, amdgcn=kernel.amdgcn.replace("dwordx4", "dword"))
    assert "w by 32 bits, could be 128" in faults(narrow).get("128-bit loads", "")


LOOP = """
.L_x_0:
        /*0010*/                   LDG.E R2, desc[UR4][R2.64] ;
        /*0020*/                   HMMA.16816.F32 R4, R8, R2, R4 ;
        /*0030*/              @!P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0040*/                   BRA `(.L_x_1);
"""


def test_main_loop_is_the_one_that_multiplies() -> None:
    names = ["LDG.E", "HMMA.16816.F32", "BRA"]
    assert [i.opcode for i in main_loop(LOOP, amd=False)] == names
    assert [i.opcode for i in main_loop(LOOP, amd=False, matrix=False)] == names
    assert main_loop(LOOP.replace("HMMA", "FFMA"), amd=False) == ()
    amd = ".LBB0_3:\n\tglobal_load_dword v1, v2\n\tv_mfma_f32_x v1\n\ts_branch .LBB0_3\n"
    assert len(main_loop(amd, amd=True)) == 3


def test_estimate_is_the_formula(built: Built) -> None:
    """int4 on 16 rows, one wave of 64 programs, bound by issue."""
    kernel, machine = built["sm_90"], MACHINES["sm_90"]
    found = estimate(kernel, 16)
    slots = len(kernel.main_loop) * 4
    assert found.bound == "issue"
    assert found.microseconds == pytest.approx(slots * 32 / (4 * machine.clock * 1e3))
    assert found.instructions_per_weight == slots * 32 / (64 * 128)
    moved = 4096 * 4096 // 2 + 32 * 4096 * 2 + 2 * 16 * 4096 * 2
    ideal = moved / (machine.bandwidth * 1e6)
    assert found.share == pytest.approx(ideal / found.microseconds)
    assert estimate(kernel, 16 * 33).microseconds == pytest.approx(16 * found.microseconds)


def test_unrolled_loops_count_steps_once(built: Built) -> None:
    kernel = built["sm_90"]
    assert kernel.sass is not None
    start = kernel.sass.index(".L_x_0:\n") + len(".L_x_0:\n")
    end = kernel.sass.index("`(.L_x_0)")
    body = kernel.sass[start : kernel.sass.rindex("\n", 0, end) + 1]
    twice = replace(kernel, sass=kernel.sass[:start] + body + kernel.sass[start:])
    assert estimate(twice, 16).microseconds == pytest.approx(
        estimate(kernel, 16).microseconds, rel=0.01
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("def f(:", "no Python source"),
        ("x = 1", "does not say for which target"),
        ('"""Triton kernel f for sm_90, printed by gqc."""', "does not say which tile"),
    ],
)
def test_other_sources_are_refused(text: str, fault: str) -> None:
    with pytest.raises(GqcError, match=fault):
        read_source(text)


def test_a_source_says_what_it_multiplies_by() -> None:
    source = read_source(SOURCE)
    assert (source.target, source.matrix, source.tile) == ("sm_100", "mxf8f6f4", (128, 128))
    assert (source.steps, source.columns, source.warps) == (32, 4096, 8)
    assert source.arrays["x"].bytes(2) == 8192 and set(source.loads.values()) == {
        *("x", "x_scale", "w", "scale")
    }
