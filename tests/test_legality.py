"""Every cell of the matrix of formats and targets: native, emulated or refused."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from gqc.integer_dots import INTEGER_DOTS
from gqc.legality import MATRIX, legality, of_scheme
from gqc.native import NATIVE
from gqc.schemes import MX_ELEMENTS, PRESETS, Scheme, preset
from gqc.targets import TARGETS

BLACKWELL = ("sm_100", "sm_103", "sm_120")
SCALED_UNITS = (*BLACKWELL, "gfx950")
"""Targets whose matrix units take MX scales."""

FLOATS = [name for name in MX_ELEMENTS if name != "mxint8"]
WHERE = {
    **dict.fromkeys(FLOATS, SCALED_UNITS),
    **{f"{x}_{w}": SCALED_UNITS for x in FLOATS for w in FLOATS if x not in (w, "mxfp4")},
    "nvfp4": BLACKWELL,
    "nvfp4_static": BLACKWELL,
    "w4a8_g128": (*INTEGER_DOTS,),
    "w8a8_g128": (*INTEGER_DOTS,),
}
"""Targets on which a scheme is native; it is emulated on all others."""

EXACT_IN_F32 = ("w4a8_g128", "w8a8_g128")
"""Schemes that need f32, and are refused where there is none."""

SCHEMES = [
    *dict.fromkeys([*MATRIX, *WHERE, *(n for n in PRESETS if n[-4:] not in ("even", "ceil"))])
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_cell(scheme: str, target: str) -> None:
    found = of_scheme(preset(scheme), TARGETS[target])
    native, units = target in WHERE.get(scheme, ()), TARGETS[target].units
    wanted = "f32" if scheme in EXACT_IN_F32 else "bf16"
    refused = "refused" if wanted not in units else "emulated"
    assert found.kind == ("native" if native else refused)
    assert (found.native is not None) == native
    instruction = found.native.matrix if found.native else units.get(wanted, "choose a scheme")
    assert instruction in found.reason


def test_the_table_holds_no_row_that_no_scheme_reaches() -> None:
    pairs = {(s.activation.element, s.element, s.scale) for s in PRESETS.values() if s.activation}
    assert {key[1:] for key in NATIVE} <= pairs


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        (Scheme("f4E2M1FN", 32), "no kernel reads scales of f16 with f4E2M1FN: choose one of"),
        (Scheme("si4", 32, scale="f8E8M0FNU"), "no kernel reads scales of f8E8M0FNU with si4"),
    ],
)
@pytest.mark.parametrize("target", ["sm_90", "gfx950", "cpu_avx2"])
def test_refusals(scheme: Scheme, reason: str, target: str) -> None:
    found = of_scheme(scheme, TARGETS[target])
    assert found.kind == "refused" and found.reason.startswith(reason)


@pytest.mark.parametrize(
    ("weight", "x", "decoded"),
    [
        ("w4a16_mxfp4", None, "f16"),
        ("w4a16_mxfp4", "mxfp8_ceil", "bf16"),
        ("w4a16_nvfp4", "mxfp8_ceil", "bf16"),
        ("int4_g32", "nvfp4", "f16"),
        ("int4_g32", "mxfp8_ceil", None),
    ],
)
def test_activations_beyond_f16_are_decoded_to_bf16_or_refused(
    weight: str, x: str | None, decoded: str | None
) -> None:
    x_type = None if x is None else preset(x).type()
    found = legality(TARGETS["sm_90"], "f16", x_type, preset(weight).type(), (64, 64))
    assert (found.kind, found.decoded) == ("emulated" if decoded else "refused", decoded)
    words = f"wgmma in {decoded}" if decoded else "activations in .*beyond 65504.*model.bfloat16"
    assert re.search(words, found.reason)


def test_blocks_that_no_unit_takes_are_decoded() -> None:
    mxfp4 = preset("mxfp4")
    wide = Scheme("f4E2M1FN", 64, "f8E8M0FNU", quantizer="microscaling", scale_rule="floor")
    both = Scheme(**{**vars(wide), "activation": wide})
    assert of_scheme(mxfp4, TARGETS["sm_100"]).kind == "native"
    assert of_scheme(both, TARGETS["sm_100"]).kind == "emulated"


def test_an_older_triton_than_a_row_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gqc.legality.triton_version", lambda: (3, 5))
    assert of_scheme(preset("nvfp4"), TARGETS["sm_100"]).kind == "emulated"


@pytest.mark.parametrize(
    ("scheme", "target", "instruction"),
    [
        ("w4a8_g32", "cpu_amx", "vpdpbusd or tdpbsud"),
        ("w4a8_g32", "cpu_avx512bf16", "vpdpbusd"),
        ("w8a8_g32_asym", "cpu_avx512vnni", "vpdpbusd"),
        ("w2a8_g64", "cpu_avx2", "vpmaddubsw"),
        ("w8a8_g64", "cpu_avx2", "vpmaddwd"),
        ("w8a8_g16", "cpu_neon", "sdot"),
        # Words of the plane of one bit hold 32 codes: they do not end with a group of 16.
        ("w3a8_g32", "cpu_neon", "sdot"),
        ("w3a8_g16", "cpu_neon", None),
        ("w4a8_g32", "cpu_portable", None),
    ],
)
def test_dots_of_bytes(scheme: str, target: str, instruction: str | None) -> None:
    found = of_scheme(preset(scheme), TARGETS[target])
    assert found.kind == ("native" if instruction else "emulated")
    assert found.reason.startswith(f"{instruction} takes si8 by " if instruction else target)
    assert found.decoded == (None if instruction else "f32")


def test_groups_that_differ_are_decoded() -> None:
    scheme = replace(preset("w4a8_g128"), activation=preset("w4a8_g32").activation)
    assert of_scheme(scheme, TARGETS["cpu_avx512bf16"]).decoded == "f32"
