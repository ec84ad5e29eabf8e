"""What passes refuse: every layer at once, with the remedy, before anything is changed."""

from __future__ import annotations

from typing import Any

import pytest

from gqc.dialects.text import parse_ir, print_ir
from gqc.errors import GqcError
from gqc.passes.legalize import Legalize
from gqc.passes.quantize_weights import QuantizeWeights
from gqc.targets import TARGETS, resolve

GPUS = [name for name, target in TARGETS.items() if target.backend == "triton"]


def layers(shapes: dict[str, tuple[int, int]], f: str = "f32", how: str = "") -> Any:
    """A module of unconnected linears: name → (N, K); `how` is the quantized format, if any."""
    lines = []
    for i, (name, (n, k)) in enumerate(shapes.items()):
        dense, x, y = f"tensor<{n}x{k}x{f}>", f"tensor<?x{k}x{f}>", f"tensor<?x{n}x{f}>"
        coded = f"tensor<{n}x{k}x!gq.block_scaled<{how}>>" if how else dense
        cast = f'%q{i} = gq.qcast %w{i} by "rtn" "no_clip" : {dense} -> {coded}' if how else ""
        weight = f"%q{i}" if how else f"%w{i}"
        lines += [
            f"func.func @f{i}(%x{i} : {x}) -> {y} {{",
            f'%w{i} = gq.weight @"{name}.weight" : {dense}',
            cast,
            f'%y{i} = gq.matmul_t %x{i}, {weight} : ({x}, {coded}) -> {y} loc("{name}")',
            f"func.return %y{i} : {y}\n}}",
        ]
    return parse_ir("\n".join(lines))


def refused(apply: Any, module: Any, pass_: Any) -> str:
    """The error's message, once the module is seen to be as it was."""
    before = print_ir(module)
    with pytest.raises(GqcError) as error:
        apply(module, pass_)
    assert print_ir(module) == before
    return str(error.value)


def test_groups_that_do_not_divide_k(apply: Any) -> None:
    """Of six layers, three do not fit, one is kept, one has a scheme of its own, one fits."""
    shapes = {
        "a": (64, 96), "b": (64, 128), "c": (8, 160), "d": (8, 96), "lm_head": (8, 96), "e": (8, 32)
    }  # fmt: skip
    schemes = ("d=int4_g32", "*=int4_g128")
    assert refused(apply, layers(shapes), QuantizeWeights(schemes)).splitlines() == [
        "K (the second dimension) is not divisible by the group in 3 layers:",
        "  a: weight [64, 96], group 128",
        "  c: weight [8, 160], group 128",
        "  e: weight [8, 32], group 128",
        "a group of 32 divides all of them; or give these layers a scheme of their own, "
        "`row` groups, or ignore them",
    ]


def test_a_ragged_layer_does_not_hide_behind_another_of_its_name(apply: Any) -> None:
    text = print_ir(layers({"a": (64, 50), "b": (64, 128)})).replace('loc("b")', 'loc("a")')
    message = refused(apply, parse_ir(text), QuantizeWeights(("*=int4_g64",)))
    assert message.startswith("K (the second dimension) is not divisible by the group in 1 layer:")
    assert "  a: weight [64, 50], group 64" in message


def test_no_group_divides_an_odd_k(apply: Any) -> None:
    message = refused(apply, layers({"a": (4, 30), "b": (4, 64)}), QuantizeWeights(("*=int4_g64",)))
    assert "a: weight [4, 30], group 64" in message and "b:" not in message
    assert "no usual group divides all; or" in message
    apply(layers({"a": (4, 30)}), QuantizeWeights(("*=int4_row",)))


def test_patterns_that_name_no_layer(apply: Any) -> None:
    shapes = {f"model.{i}.fc": (8, 32) for i in range(5)}
    schemes = ("encoder.*=int8_row", "model.*=int4_g32", "head=keep")
    assert refused(apply, layers(shapes), QuantizeWeights(schemes)) == (
        "no linear layer matches 'encoder.*', 'head': a pattern is a layer's name or a wildcard; "
        "the 5 layers are model.0.fc, model.1.fc, model.2.fc, …"
    )


@pytest.mark.parametrize(
    "scheme, words",
    [
        ("int4", "unknown scheme 'int4'"),
        ("int9_g32", "unknown scheme 'int9_g32'"),
        ("si4 g32 scale=f99", "is no format"),
        ("ui4 g32 zero=ui8 zero_mode=quantized", "C5: element and zero point must be one"),
    ],
)
def test_schemes_that_are_none(apply: Any, scheme: str, words: str) -> None:
    schemes = ("b=keep", f"*={scheme}")
    assert words in refused(apply, layers({"a": (8, 32), "b": (8, 32)}), QuantizeWeights(schemes))


@pytest.mark.parametrize("target", GPUS)
def test_f32_activations_on_a_gpu(apply: Any, target: str) -> None:
    module = layers({"a": (8, 32), "b": (8, 32)}, "f32", "1x32 : f16 : si4")
    lines = refused(apply, module, Legalize(target)).splitlines()
    assert lines[0] == f"target {target} cannot do 2 layers:"
    assert [line.split(":")[0] for line in lines[1:]] == ["  a", "  b"]
    for line in lines[1:]:
        assert "activations are f32, the target multiplies f16 and bf16" in line
        assert "model.bfloat16()" in line


CPUS = [name for name, target in TARGETS.items() if target.backend == "cpu"]
MX = ("f4E2M1FN", "f6E2M3FN", "f6E3M2FN", "f8E4M3FN", "f8E5M2")


@pytest.mark.parametrize("target", CPUS)
@pytest.mark.parametrize("element", MX)
def test_mx_elements_on_a_cpu(apply: Any, target: str, element: str) -> None:
    module = layers({"a": (8, 32)}, "f32", f"1x32 : f8E8M0FNU : {element}")
    apply(module, Legalize(target))
    assert f"multiplies no {element}: decoded" in print_ir(module)


@pytest.mark.parametrize("target", GPUS)
@pytest.mark.parametrize("element", [*MX, "si8"])
def test_mx_elements_on_a_gpu(apply: Any, target: str, element: str) -> None:
    module = layers({"a": (8, 32)}, "bf16", f"1x32 : f8E8M0FNU : {element}")
    apply(module, Legalize(target))
    assert f"multiplies no {element}: decoded" in print_ir(module)


@pytest.mark.parametrize(
    "format, words",
    [
        ("1x16 : f8E4M3FN : f6E2M3FN, global = f32", "scales of f8E4M3FN with f6E2M3FN: choose one "
         "of f8E8M0FNU"),
        ("1x32 : f16 : f6E2M3FN", "scales of f16 with f6E2M3FN: choose one of f8E8M0FNU"),
        ("1x32 : f8E8M0FNU : si4", "scales of f8E8M0FNU with si4: choose one of f16, bf16, f32"),
        ("1x32 : f16 : ui4, zero = f8E4M3FN, zero_mode = rescale", "scales of f8E4M3FN with ui4"),
    ],
)  # fmt: skip
def test_scales_that_no_kernel_reads(apply: Any, format: str, words: str) -> None:
    module = layers({"a": (8, 32)}, "bf16", format)
    assert f"a: no kernel reads {words}" in refused(apply, module, Legalize("cpu_avx2"))


@pytest.mark.parametrize(
    "format, block", [("16x16 : f16 : si4", "16x16"), ("1x8 : f16 : si4", "1x8")]
)
def test_blocks_that_no_kernel_scales(apply: Any, format: str, block: str) -> None:
    message = refused(apply, layers({"a": (32, 32)}, "bf16", format), Legalize("sm_90"))
    assert (
        f"a: no kernel scales blocks of {block}: choose a group of (16, 32, 64, 128, 256) or row"
        in message
    )


def test_a_bad_layer_does_not_hide_behind_another_of_its_name(apply: Any) -> None:
    text = print_ir(layers({"a": (32, 32), "b": (32, 64)}, "bf16", "1x8 : f16 : si4"))
    first, second = text.replace('loc("b")', 'loc("a")').split("func.func @f1")
    second = second.replace("1x8 : f16 : si4", "1x32 : f16 : f4E2M1FN")
    message = refused(apply, parse_ir(f"{first}func.func @f1{second}"), Legalize("sm_90"))
    assert message.startswith("target sm_90 cannot do 2 layers:")
    assert (
        "a: no kernel scales" in message
        and "a: no kernel reads scales of f16 with f4E2M1FN" in message
    )


def test_one_layer_is_not_one_layers(apply: Any) -> None:
    module = layers({"a": (8, 32)}, "f32", "1x32 : f16 : si4")
    assert refused(apply, module, Legalize("sm_90")).startswith("target sm_90 cannot do 1 layer:")


def test_a_layer_that_fits_is_not_named(apply: Any) -> None:
    text = print_ir(layers({"good": (8, 32)}, "bf16", "1x32 : f16 : si4"))
    bad = print_ir(layers({"bad": (8, 32)}, "bf16", "1x8 : f16 : si4")).replace("@f0", "@f1")
    module = parse_ir(text[: text.rindex("}")] + bad[bad.index("{") + 1 :])
    message = refused(apply, module, Legalize("sm_90"))
    assert "bad:" in message and "good" not in message


@pytest.mark.parametrize("name", ["sm_70", "cuda", ""])
def test_unknown_targets(apply: Any, name: str) -> None:
    with pytest.raises(
        GqcError, match=rf"unknown target '{name}': choose one of auto, cpu, sm_80,"
    ):
        resolve(name)


def test_cpu_and_auto_are_rows_of_the_table() -> None:
    assert resolve("cpu").name in TARGETS and resolve("cpu").backend == "cpu"
    assert resolve("auto").name in TARGETS
