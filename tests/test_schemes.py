"""Schemes: what names and patterns mean, and how mistakes are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gqc.errors import GqcError
from gqc.formats.elements import INTEGER_BITS
from gqc.quantizers import MICROSCALING_RULES
from gqc.schemes import (
    GROUPS,
    MX_ELEMENTS,
    NVFP4,
    PRESETS,
    ROUNDINGS,
    Patterns,
    Scheme,
    parse_scheme,
    preset,
    scheme_list,
)

AMAX: dict[str, Any] = {"quantizer": "microscaling", "scale_rule": "amax"}
MINMAX: dict[str, Any] = {"zero_mode": "rescale", "zero": "f16", "scale_rule": "minmax"}


@pytest.mark.parametrize(
    "name, scheme, type_",
    [
        (
            "int4_g128",
            Scheme("ui4", 128, **MINMAX),
            "!gq.block_scaled<1x128 : f16 : ui4, zero = f16, zero_mode = rescale>",
        ),
        (
            "int8_row",
            Scheme("ui8", None, **MINMAX),
            "!gq.block_scaled<1x? : f16 : ui8, zero = f16, zero_mode = rescale>",
        ),
        ("int3_g64_sym", Scheme("si3", 64), "!gq.block_scaled<1x64 : f16 : si3>"),
        ("int8_row_sym", Scheme("si8", None), "!gq.block_scaled<1x? : f16 : si8>"),
        (
            "int1_g16",
            Scheme("ui1", 16, **MINMAX),
            "!gq.block_scaled<1x16 : f16 : ui1, zero = f16, zero_mode = rescale>",
        ),
        (
            "w4a16_mxfp4",
            Scheme("f4E2M1FN", 32, "f8E8M0FNU", quantizer="microscaling", scale_rule="floor"),
            "!gq.block_scaled<1x32 : f8E8M0FNU : f4E2M1FN>",
        ),
        (
            "w6a16_mxfp6",
            Scheme("f6E2M3FN", 32, "f8E8M0FNU", quantizer="microscaling", scale_rule="floor"),
            "!gq.block_scaled<1x32 : f8E8M0FNU : f6E2M3FN>",
        ),
        (
            "w6a16_mxfp6_e3m2",
            Scheme("f6E3M2FN", 32, "f8E8M0FNU", quantizer="microscaling", scale_rule="floor"),
            "!gq.block_scaled<1x32 : f8E8M0FNU : f6E3M2FN>",
        ),
        (
            "w8a16_mxfp8",
            Scheme("f8E4M3FN", 32, "f8E8M0FNU", quantizer="microscaling", scale_rule="floor"),
            "!gq.block_scaled<1x32 : f8E8M0FNU : f8E4M3FN>",
        ),
        (
            "w8a16_mxfp8_e5m2_rceil",
            Scheme("f8E5M2", 32, "f8E8M0FNU", quantizer="microscaling", scale_rule="rceil"),
            "!gq.block_scaled<1x32 : f8E8M0FNU : f8E5M2>",
        ),
        (
            "w8a16_mxint8_even",
            Scheme("si8", 32, "f8E8M0FNU", quantizer="microscaling", scale_rule="even"),
            "!gq.block_scaled<1x32 : f8E8M0FNU : si8>",
        ),
        (
            "w4a8_g32",
            Scheme("si4", 32, activation=Scheme("si8", 32, "f32", **AMAX)),
            "!gq.block_scaled<1x32 : f16 : si4>",
        ),
        (
            "w8a8_g128_asym",
            Scheme("ui8", 128, **MINMAX, activation=Scheme("si8", 128, "f32", **AMAX)),
            "!gq.block_scaled<1x128 : f16 : ui8, zero = f16, zero_mode = rescale>",
        ),
        (
            "w4a16_nvfp4",
            Scheme("f4E2M1FN", 16, "f8E4M3FN", **AMAX, tensor_scale=True),
            "!gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>",
        ),
    ],
)
def test_presets(name: str, scheme: Scheme, type_: str) -> None:
    assert preset(name) == scheme
    assert str(scheme.type()) == type_


def test_every_width_and_group_is_a_preset() -> None:
    for bits in INTEGER_BITS:
        for group in (*(f"g{g}" for g in GROUPS), "row"):
            name = f"int{bits}_{group}"
            assert preset(name).type().format.name == f"ui{bits}"
            if bits > 1:
                assert preset(f"{name}_sym").type().format.name == f"si{bits}"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "int9_g32",
            "int4_g48",
            "int4",
            "int4_g",
            "int4_g32_asym",
            "uint4_g32",
            "",
            "nf4",
            "mxfp5",
        ),
        *("w9a8_g32", "w4a8_g48", "w4a8", "w4a8_row", "w4a8_g32_sym", "w4a4_g32"),
    ],
)
def test_an_unknown_name_is_told_what_names_there_are(name: str) -> None:
    with pytest.raises(GqcError, match=r"write int<bits>_g<group>.*for example int4_g128") as error:
        parse_scheme(name)
    for told in ("nvfp4_static, mxfp8, mxfp8_e5m2, mxfp6,", "mxfp8_mxfp4", "_even, _ceil, _rceil"):
        assert told in str(error.value)


def test_every_preset_is_read_back_from_its_text() -> None:
    for scheme in PRESETS.values():
        assert parse_scheme(str(scheme)) == scheme


def test_presets_of_activations() -> None:
    pair, both, alone = (preset(n) for n in ("mxfp8_mxfp4_ceil", "nvfp4", "w4a16_nvfp4"))
    assert pair.activation is not None and both.activation is not None
    assert (pair.element, pair.activation.element) == ("f4E2M1FN", "f8E4M3FN")
    assert (pair.scale_rule, pair.activation.scale_rule) == ("ceil", "ceil")
    assert both.activation == alone and alone.activation is None and not alone.static
    static = preset("nvfp4_static").activation
    assert static is not None and static.static
    assert str(alone.type(3)) == "!gq.block_scaled<1x1x16 : f8E4M3FN : f4E2M1FN, global = f32>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"static": True}, "only a tensor scale can be static"),
        ({"activation": Scheme("si8", 32)}, "activations are quantized by microscaling"),
        ({"activation": Scheme("si8", None, "f32", **AMAX)}, "quantized in groups: choose one of"),
    ],
)
def test_activations_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(GqcError, match=message):
        Scheme("si4", 32, **options)


def test_every_rounding_of_every_mx_format_is_a_preset() -> None:
    for name in MX_ELEMENTS:
        rules = [preset(f"{name}{suffix}").scale_rule for suffix in ROUNDINGS]
        assert rules == [*MICROSCALING_RULES["f8E8M0FNU"]]


def test_one_signed_bit_is_refused() -> None:
    with pytest.raises(GqcError, match="one signed bit is 0 or −1; leave _sym out"):
        preset("int1_g32_sym")
    with pytest.raises(GqcError, match="one signed bit is 0 or −1; add _asym"):
        preset("w1a8_g32")


@pytest.mark.parametrize(
    "scheme",
    [
        preset("int4_g128"),
        preset("int3_row_sym"),
        preset("w4a8_g32+gptq"),
        preset("w8a8_g128_asym"),
        Scheme("si4", 16, "bf16", scale_rule="half"),
        Scheme("ui4", None, "f32", "quantized", "ui4", "rtn", "minmax"),
        Scheme("ui2", 256, "f16", "original", "f16", "rtn", "minmax"),
        Scheme("f4E2M1FN", 32, "f8E8M0FNU"),
        preset("w4a16_nvfp4"),
        Scheme("ui4", 32, "f16", "rescale", "f16", tensor_scale=True),
    ],
    ids=str,
)
def test_text_of_a_scheme_reads_back(scheme: Scheme) -> None:
    assert parse_scheme(str(scheme)) == scheme


def test_text_may_leave_defaults_out() -> None:
    assert parse_scheme("si4 g32") == Scheme("si4", 32)
    assert parse_scheme("si8 row scale=bf16") == Scheme("si8", None, "bf16")


@pytest.mark.parametrize(
    "text, words",
    [
        ("si4 g48", "a group of 48: choose one of .16, 32, 64, 128, 256., or None for a row"),
        ("si4 gx", "scheme 'si4 gx' cannot be read"),
        ("si4 g32 colour=red", "'colour=red' is no choice: write element=…, group=…, scale=…"),
        ("si4 g32 fast", "scheme 'si4 g32 fast' cannot be read: 'fast' is no choice"),
        ("int4 g128", "'int4' is no element format .*for example int8_g32 scale=bf16"),
        ("int8_g32 colour=red", "scheme 'int8_g32 colour=red' cannot be read: 'colour=red' is no"),
        ("int8_g48 scale=bf16", "unknown scheme 'int8_g48'"),
        ("int8_g32 static=False", "cannot be read: it is True or left out, not False"),
        ("si4 g32 quantizer=magic", "unknown quantizer 'magic': choose one of rtn"),
        ("si4 g32 scale_rule=amax", "unknown scale_rule 'amax': choose one of minmax, half,"),
        ("si4 g32 tensor_scale=f16", "cannot be read: it is f32 or left out, not f16"),
        ("ui4 g32 zero=f16", "zero_mode 'none' with zero 'f16': give both or none"),
        ("ui4 g32 zero_mode=rescale", "zero_mode 'rescale' with zero None: give both or none"),
    ],
)
def test_what_is_no_scheme_is_told_why(text: str, words: str) -> None:
    with pytest.raises(GqcError, match=words):
        parse_scheme(text)


@pytest.mark.parametrize(
    "scheme, words",
    [
        (Scheme("si9", 32), "C2: si9 is not an element format"),
        (Scheme("xyz", 32), "is no format"),
        (Scheme("si4", 32, "f8E5M2"), "C3: f8E5M2 is not a scale format"),
        (
            Scheme("ui4", 32, zero_mode="quantized", zero="ui8"),
            "C5: element and zero point must be one",
        ),
        (Scheme("ui4", 32, zero_mode="rescale", zero="ui4"), "C6: ui4 is not a format of zero"),
        (Scheme("ui4", 32, zero_mode="tinygemm", zero="f16"), "is no format"),
    ],
)
def test_a_scheme_without_a_type_is_told_why(scheme: Scheme, words: str) -> None:
    with pytest.raises(GqcError, match=words):
        scheme.type()


def test_scheme_list() -> None:
    assert scheme_list("int4_g32") == ("*=int4_g32",)
    assert scheme_list({"a.*": "int4_g32", "b": "keep"}) == ("a.*=int4_g32", "b=keep")
    assert scheme_list("int4_g32", ignore=["head", "a.*"])[:2] == ("head=keep", "a.*=keep")
    assert scheme_list("int4_g32", ignore="head")[0] == "head=keep"
    assert scheme_list(Scheme("si4", 32)) == (
        "*=si4 g32 scale=f16 quantizer=rtn scale_rule=no_clip",
    )
    with pytest.raises(GqcError, match="unknown scheme 'int9_g32'"):
        scheme_list({"a": "int4_g32", "b": "int9_g32"})


def test_the_first_pattern_that_matches_counts() -> None:
    entries = Patterns(("model.*.q=int8_row", "model.*=int4_g32", "head=keep", "head=int8_row"))
    assert entries.match("model.0.q") == ("model.*.q", "int8_row")
    assert entries.match("model.0.k") == ("model.*", "int4_g32")
    assert entries.match("head") == ("head", "keep")
    assert entries.match("Head") is None, "case counts"
    assert entries.match("encoder") is None
    assert entries.unmatched(["model.0.k", "encoder"]) == ["model.*.q", "head", "head"]


def test_a_name_and_a_wildcard_match_in_their_order() -> None:
    assert Patterns(("a.b=int8_row", "a.*=keep")).match("a.b") == ("a.b", "int8_row")
    assert Patterns(("a.*=keep", "a.b=int8_row")).match("a.b") == ("a.*", "keep")


def test_a_scheme_in_a_list_keeps_its_options() -> None:
    """Names of modules and texts of schemes may both hold `=`."""
    scheme = Scheme("ui4", 32, "bf16", "quantized", "ui4", "rtn", "minmax")
    for name in ("a", "a=b", "a=b=c.d"):
        for value in (scheme, "int4_g32", "keep"):
            match = Patterns(scheme_list({name: value})).match(name)
            assert match == (name, str(value))
    assert parse_scheme(str(scheme)) == scheme


def test_a_name_with_brackets_matches_itself() -> None:
    entries = Patterns(("a[01]=keep",))
    assert entries.match("a[01]") == entries.match("a0") == ("a[01]", "keep")


def test_what_is_no_entry_is_told() -> None:
    with pytest.raises(GqcError, match="'int4_g32' is no entry: write pattern=scheme"):
        Patterns(("int4_g32",))


def test_a_scheme_for_each_of_many_layers_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not compared: 2000 names with 2000 patterns would take seconds."""
    names = [f"model.layers.{i}.mlp" for i in range(2000)]
    entries = Patterns(scheme_list({name: "int4_g32" for name in names}))
    monkeypatch.setattr("fnmatch.fnmatchcase", None)
    monkeypatch.setattr("fnmatch.filter", None)
    assert all(entries.match(name) == (name, "int4_g32") for name in names)
    assert entries.unmatched(names[1:]) == names[:1]


@pytest.mark.parametrize(
    "element, codes", [("ui4", "0 to 15"), ("ui1", "0 to 1"), ("si1", "-1 to 0")]
)
def test_codes_of_one_sign_need_a_zero_point(element: str, codes: str) -> None:
    with pytest.raises(GqcError, match=f"{element} without a zero point is {codes}: choose"):
        Scheme(element, 32)
    Scheme(element, 32, zero_mode="rescale", zero="f16")


@pytest.mark.parametrize(
    "text, transforms, quantizer",
    [
        ("int4_g64+gptq", (), "gptq"),
        ("int4_g64+awq", ("awq",), "scale_search"),
        ("int4_g64+awq+rtn", ("awq",), "rtn"),
        ("nvfp4+awq+gptq", ("awq",), "gptq"),
        ("mxfp4+smoothquant", ("smoothquant",), "microscaling"),
        ("mxfp4_even+smoothquant+hadamard+gptq", ("smoothquant", "hadamard"), "gptq"),
        ("mxfp4+hadamard", ("hadamard",), "microscaling"),
    ],
)
def test_transforms_come_before_the_quantizer(
    text: str, transforms: tuple[str, ...], quantizer: str
) -> None:
    scheme = parse_scheme(text)
    assert (scheme.transforms, scheme.quantizer) == (transforms, quantizer)
    assert parse_scheme(str(scheme)) == scheme
    assert Patterns(scheme_list({"a=b": text})).match("a=b") == ("a=b", text)
    assert Patterns(scheme_list({"a=b": scheme})).match("a=b") == ("a=b", str(scheme))


@pytest.mark.parametrize(
    "text, words",
    [
        ("int4_g64+gptq+awq", r"int4_g64\+gptq\+awq: gptq comes last, and one quantizer alone"),
        ("int4_g64+hqq+gptq", "hqq comes last"),
        ("int4_g64+magic", "no quantizer 'magic' for int4_g64: choose one of rtn, hqq, .*awq"),
        ("int4_g64+magic+gptq", "no quantizer 'magic' for int4_g64"),
        ("int4_g64+", "no quantizer '' for int4_g64"),
        ("mxfp4+awq+smoothquant", "choose one of awq, smoothquant, once"),
        ("int4_g64+awq+awq", "choose one of awq, smoothquant, once"),
        ("mxfp4+hadamard+awq", "hadamard mixes channels, so it comes last"),
        ("int4_row+hadamard", "give a group, not a row"),
        ("int4_g64+smoothquant", "for schemes that quantize activations: use awq"),
        ("nvfp4_static+hadamard", "the tensor scale of a rotated activation is dynamic"),
        ("si4 g32 transforms=magic", "unknown transform 'magic': choose of awq, smoothquant, had"),
        (
            "si4 g32 activation=si8,g32,quantizer=microscaling,scale_rule=floor,transforms=awq",
            "its layer's",
        ),
    ],
)
def test_transforms_that_make_no_sense(text: str, words: str) -> None:
    with pytest.raises(GqcError, match=words):
        parse_scheme(text)


def test_what_needs_calibration() -> None:
    for text in ("int4_g64+gptq", "int4_g64+awq+rtn", "mxfp4+smoothquant", "nvfp4_static"):
        assert parse_scheme(text).needs_calibration
    for text in ("int4_g64", "int4_g64+scale_search", "mxfp4+hadamard", "nvfp4+four_over_six"):
        assert not parse_scheme(text).needs_calibration


@pytest.mark.parametrize(
    "text, scheme",
    [
        ("int8_g32 scale=bf16", replace(preset("int8_g32"), scale="bf16")),
        ("int8_g32 scale=f32 zero=f32", replace(preset("int8_g32"), scale="f32", zero="f32")),
        ("int4_g64+awq scale=f32", replace(preset("int4_g64+awq"), scale="f32")),
        ("w4a8_g32 scale=bf16", replace(preset("w4a8_g32"), scale="bf16")),
        ("int4_g32_sym scale_rule=half group=row", Scheme("si4", None, scale_rule="half")),
        ("nvfp4 activation=f4E2M1FN,g16,scale=f8E4M3FN,quantizer=microscaling,scale_rule=amax",
         replace(preset("nvfp4"), activation=replace(NVFP4, tensor_scale=False))),
    ],
)  # fmt: skip
def test_choices_after_a_preset(text: str, scheme: Scheme) -> None:
    assert parse_scheme(text) == scheme
    (pattern,) = Patterns(scheme_list({"*.up": text})).entries
    assert pattern == ("*.up", text)


def test_activations_are_not_quantized_to_codebooks() -> None:
    nf4 = preset("w4a16_nf4")
    assert str(nf4.type()) == "!gq.block_scaled<1x64 : f32 : nf4>"
    assert parse_scheme(str(nf4)) == nf4
    with pytest.raises(GqcError, match="activations are not quantized to nf4, a codebook"):
        replace(nf4, activation=nf4)
