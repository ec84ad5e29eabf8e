"""Quantization configs: where they are, layers that they except, and methods that are not read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.packed import auto_round, awq, fp8, fp8_variant, gptq, modelopt, plain
from checkpoints.peers import COMPRESSED_TENSORS
from checkpoints.sample import LAYER, Sample, tensors_of
from safetensors.torch import save

from gqc.checkpoints.configs import OWN_FILES, UNREAD, without_quantization
from gqc.checkpoints.weights import BlockScaled
from gqc.errors import GqcError

QUANTIZATION = "quantization_config"


def quantization_in(sample: Sample) -> dict[str, Any]:
    return json.loads(sample.files["config.json"])[QUANTIZATION]


def configured(sample: Sample, **changes: Any) -> Sample:
    """The same sample, its quantization config changed; None takes a key out."""
    said = {**quantization_in(sample), **changes}
    said = {key: value for key, value in said.items() if value is not None}
    sample.files["config.json"] = json.dumps({"model_type": "llama", QUANTIZATION: said}).encode()
    return sample


def moved(sample: Sample, file: str) -> Sample:
    """The same, its quantization config in a file of its own, which does not name the method."""
    said = quantization_in(sample)
    method = said.pop("quant_method")
    if file == "quantization_config.json":
        said["quant_method"] = method
    sample.files |= {file: json.dumps(said).encode(), "config.json": b'{"model_type": "llama"}'}
    return sample


@pytest.mark.parametrize(
    ("file", "make", "format"),
    [
        ("quantize_config.json", lambda: gptq(4, 1, True), "gptq"),
        ("quant_config.json", lambda: awq("gemv"), "awq"),
        ("quantization_config.json", lambda: auto_round("auto_round"), "auto-round"),
    ],
)
def test_a_config_in_a_file_of_its_own(
    file: str, make: Callable[[], Sample], format: str, tmp_path: Path
) -> None:
    assert moved(make(), file).check(tmp_path).format == format


@pytest.mark.parametrize("part", ["text_config", "llm_config"])
def test_a_config_within_that_of_the_language_model(part: str, tmp_path: Path) -> None:
    sample = gptq(4, 2, False)
    config = {"model_type": "gemma3", part: {QUANTIZATION: quantization_in(sample), "layers": 2}}
    sample.files["config.json"] = json.dumps(config).encode()
    checkpoint = sample.check(tmp_path)
    assert without_quantization(checkpoint.config) == {"model_type": "gemma3", part: {"layers": 2}}


@pytest.mark.parametrize("make", [lambda: gptq(4, 1, False), COMPRESSED_TENSORS["pack_4bit"]])
def test_quantized_weights_without_a_config_are_refused(
    make: Callable[[], Sample], tmp_path: Path
) -> None:
    sample = make()
    sample.files["config.json"] = b'{"model_type": "llama"}'
    with pytest.raises(GqcError, match="is part of a quantized weight, but no quantization") as e:
        sample.open(tmp_path)
    assert LAYER in str(e.value) and all(own.name in str(e.value) for own in OWN_FILES)


@pytest.mark.parametrize("pattern", ["+:.*down_proj", r".*\.mlp\.down_proj$", "model.layers.0"])
def test_layers_that_gptq_excepts(pattern: str, tmp_path: Path) -> None:
    """The first pattern that matches the start of a name counts, and may change everything."""
    dynamic = {
        "mlp.down_proj": {"bits": 3},
        "-:lm_head": {},
        pattern: {"bits": 8, "group_size": 32, "sym": False, "desc_act": True},
        ".*": {"bits": 2},
    }
    sample = gptq(8, 1, True)
    configured(sample, bits=4, group_size=128, sym=True, desc_act=False, dynamic=dynamic)
    sample.check(tmp_path)


def test_a_layer_that_is_quantized_though_excepted(tmp_path: Path) -> None:
    sample = configured(gptq(4, 1, False), dynamic={"-:.*down_proj": {}})
    checkpoint = sample.open(tmp_path)
    with pytest.raises(GqcError, match=r"qweight is there, but dynamic '\.\*down_proj' leaves"):
        checkpoint.read(f"{LAYER}.weight")


@pytest.mark.parametrize(
    "dynamic", [{"(": {}}, {"a": 1}, {"a": {"bits": 5}}, {"a": {"group_size": 0}}, [1]], ids=str
)
@pytest.mark.parametrize("make", [lambda: gptq(4, 1, False), lambda: awq("gemm")])
def test_exceptions_that_are_none(make: Callable[[], Sample], dynamic: Any, tmp_path: Path) -> None:
    with pytest.raises(GqcError, match="quantization config: "):
        configured(make(), dynamic=dynamic).open(tmp_path)


def test_layers_that_awq_excepts(tmp_path: Path) -> None:
    sample = configured(awq("gemm", 64), group_size=128, dynamic={".*down": {"group_size": 64}})
    sample.check(tmp_path)
    configured(sample, version=None, checkpoint_format="gemm").check(tmp_path)
    with pytest.raises(GqcError, match="version is 'llm-awq', expected one of gemm"):
        configured(sample, checkpoint_format="llm-awq").open(tmp_path)


@pytest.mark.parametrize(("tag", "version"), [("gptq", 2), ("gptq_v2", 1)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_symmetric_zero_points_tell_their_format(
    bits: int, tag: str, version: int, tmp_path: Path
) -> None:
    sample = configured(gptq(bits, version, False, sym=True), checkpoint_format=tag)
    with pytest.warns(UserWarning, match=f"though the config says {tag}: read as gptq"):
        sample.check(tmp_path)


def test_other_zero_points_are_of_the_format_that_is_said(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gptq(4, 2, False).check(tmp_path)
    (tmp_path / "sym").mkdir()
    checkpoint = configured(gptq(4, 2, False), sym=True).open(tmp_path / "sym")
    with pytest.raises(GqcError, match="qzeros are not all 8, but the config says sym"):
        checkpoint.read(f"{LAYER}.weight")


@pytest.mark.parametrize("name", ["down_proj", r"layers\.\d+\.mlp", f"^{LAYER}$"])
def test_layers_that_auto_round_excepts_by_a_part_of_their_name(name: str, tmp_path: Path) -> None:
    sample = auto_round("auto_round:auto_gptq")
    layer = quantization_in(sample)["extra_config"][LAYER]
    configured(sample, extra_config={"up_proj": {"bits": 2}, name: layer}).check(tmp_path)
    whole = {".*": {"bits": 2}, LAYER: layer}
    configured(sample, extra_config=whole).check(tmp_path)


@pytest.mark.parametrize("form", ["auto_round:exllamav2", "auto_round:gptq", "auto_round:awq"])
def test_other_names_of_auto_rounds_layouts(form: str, tmp_path: Path) -> None:
    layout = {"exllamav2": "auto_round", "gptq": "auto_round:auto_gptq"}
    sample = auto_round(layout.get(form.split(":")[1], "auto_round:auto_awq"))
    configured(sample, packing_format=form).check(tmp_path)


FLOATS = {
    "nvfp4": {"data_type": "nv_fp", "bits": 4, "group_size": 16},
    "mxfp4": {"data_type": "mx_fp", "bits": 4, "group_size": 32},
    "mxfp8": {"data_type": "mx_fp", "bits": 8, "group_size": 32},
}


@pytest.mark.parametrize("form", FLOATS)
def test_auto_rounds_floats_are_stored_as_compressed_tensors_has_them(
    form: str, tmp_path: Path
) -> None:
    said = FLOATS[form]
    sample = COMPRESSED_TENSORS[form]()
    config = {"quant_method": "auto-round", "packing_format": "auto_round:llm_compressor", **said}
    config |= {f"act_{key}": value for key, value in said.items()}
    config["extra_config"] = {"up_proj": {"bits": 16}, "v_proj": FLOATS["mxfp8"]}
    content = {"model_type": "llama", QUANTIZATION: config}
    sample.files["config.json"] = json.dumps(content).encode()
    checkpoint = sample.check(tmp_path)
    activation = checkpoint.activation(f"{LAYER}.weight")
    weight = checkpoint.read(f"{LAYER}.weight")
    assert activation is not None and isinstance(weight, BlockScaled)
    assert activation.type(2).element == weight.type.element


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"packing_format": "auto_round:mlx"}, "packing_format is 'auto_round:mlx', expected"),
        ({"packing_format": "auto_round:llm_compressor"}, "data_type 'int' of 4 bits in packing"),
        ({"data_type": "mx_fp"}, "data_type is 'mx_fp' in a layout of integers"),
        ({"rotation_config": {"a": 1}}, "rotation_config {'a': 1} is not read: export without"),
        ({"spinquant_config": {"a": 1}}, "spinquant_config {'a': 1} is not read: export without"),
        ({"packing_format": "auto_round:fp8"}, "data_type is 'int' in a layout of FP8"),
        ({"extra_config": {"a": 3}}, "extra_config of 'a' is no object"),
    ],
)
def test_what_is_not_read_of_auto_round(changes: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(GqcError, match=told):
        configured(auto_round("auto_round"), **changes).open(tmp_path)


def test_scales_that_divide_are_said_to(tmp_path: Path) -> None:
    """GPTQModel stores what weights were multiplied by, by the name that others give to factors."""
    sample = configured(fp8(), weight_scale_semantics="inverse", weight_scale_method="block")
    codes, scale = (
        tensors_of(sample.files["model.safetensors"])[f"{LAYER}.{part}"]
        for part in ("weight", "weight_scale_inv")
    )
    each = scale.reciprocal().double().repeat_interleave(16, 0).repeat_interleave(64, 1)
    sample.parameters[f"{LAYER}.weight"] = codes.double() * each[:40, :96]
    sample.check(tmp_path)
    with pytest.raises(GqcError, match="weight_scale_semantics is 'direct', expected 'inverse'"):
        configured(sample, weight_scale_semantics="direct").open(tmp_path)


def test_a_method_may_be_called_method(tmp_path: Path) -> None:
    configured(gptq(4, 1, True), quant_method=None, method="gptq").check(tmp_path)
    (tmp_path / "fp8").mkdir()
    said = {"method": "fp8", "format": "float8_e4m3fn", "weight_block_size": [16, 64]}
    sample = fp8()
    sample.files |= {"config.json": b"{}", "quantize_config.json": json.dumps(said).encode()}
    assert sample.check(tmp_path / "fp8").format == "fp8"


def test_sparsity_may_be_described_though_weights_are_dense(tmp_path: Path) -> None:
    sparsity = {"format": "dense", "global_sparsity": 0.14, "sparsity_structure": "unstructured"}
    sample = configured(COMPRESSED_TENSORS["pack_4bit"](), sparsity_config=sparsity)
    sample.check(tmp_path)
    with pytest.raises(GqcError, match="format 'sparse-24-bitmask'; sparse weights are not read"):
        configured(sample, sparsity_config={"format": "sparse-24-bitmask"}).open(tmp_path)


def of_groups(sample: Sample, **changes: Any) -> Sample:
    groups = quantization_in(sample)["config_groups"]
    return configured(sample, config_groups={name: g | changes for name, g in groups.items()})


def test_blocks_in_words_and_outputs_of_compressed_tensors(tmp_path: Path) -> None:
    sample = COMPRESSED_TENSORS["float_block"]()
    weights = dict(quantization_in(sample)["config_groups"]["group_0"]["weights"])
    weights["block_structure"] = "x".join(map(str, weights["block_structure"]))
    of_groups(sample, weights=weights, output_activations={"num_bits": 8, "type": "int"})
    with pytest.warns(UserWarning, match="output_activations: .* and so are outputs"):
        sample.check(tmp_path)
    with pytest.raises(GqcError, match=r"block_structure is \[0, 0\], expected \[A, B\]"):
        of_groups(sample, weights=weights | {"block_structure": "axb"}).open(tmp_path)


@pytest.mark.parametrize("said", [{"kv_cache_quant_algo": "FP8"}, {"quant_algo": None}])
def test_modelopt_may_quantize_the_cache_alone(said: dict[str, Any], tmp_path: Path) -> None:
    sample = plain(1)
    said = {"producer": {"name": "modelopt"}, "quantization": said}
    sample.files["hf_quant_config.json"] = json.dumps(said).encode()
    assert sample.check(tmp_path).format == "modelopt"


def test_layers_that_modelopt_names_by_patterns(tmp_path: Path) -> None:
    layers = {"model.layers.*.mlp.*": {"quant_algo": "NVFP4", "group_size": 16}}
    configured(modelopt("MIXED_PRECISION"), quantized_layers=layers).check(tmp_path)


@pytest.mark.parametrize("part", ["svdquant_lora_a", "wscales"])
@pytest.mark.parametrize("make", [lambda: modelopt("NVFP4"), lambda: plain(1)])
def test_products_of_low_rank_are_refused(
    part: str, make: Callable[[], Sample], tmp_path: Path
) -> None:
    sample = make()
    tensors = tensors_of(sample.files["model.safetensors"])
    sample.files["model.safetensors"] = save({**tensors, f"{LAYER}.{part}": torch.ones(4, 64)})
    with pytest.raises(GqcError, match=rf"{part} is SVDQuant's, which is not read \(codes beside"):
        sample.open(tmp_path)


@pytest.mark.parametrize("form", ["rows", "blocks"])
def test_fp8_of_auto_round(form: str, tmp_path: Path) -> None:
    sample = fp8() if form == "blocks" else fp8_variant("row")
    group = [16, 64] if form == "blocks" else -1
    said = {"quant_method": "auto-round", "data_type": "fp", "bits": 8, "group_size": group}
    sample.files["config.json"] = json.dumps({QUANTIZATION: said}).encode()
    assert sample.check(tmp_path).format == "auto-round"


def test_inputs_that_auto_round_quantizes_in_a_layout_of_integers_are_said(tmp_path: Path) -> None:
    sample = configured(auto_round("auto_round:auto_gptq"), act_bits=8)
    with pytest.warns(UserWarning, match="inputs that the checkpoint quantizes to 8 bits are left"):
        sample.check(tmp_path)


@pytest.mark.parametrize("method", UNREAD)
def test_methods_that_are_not_read(method: str, tmp_path: Path) -> None:
    sample = configured(awq("gemm"), quant_method=method)
    with pytest.raises(GqcError) as error:
        sample.open(tmp_path)
    assert f"quant_method is {method!r} ({UNREAD[method]}), expected one of" in str(error.value)


def test_mlx_names_no_method(tmp_path: Path) -> None:
    sample = awq("gemm")
    said = {"group_size": 64, "bits": 4}
    for key in ("quantization", QUANTIZATION):
        sample.files["config.json"] = json.dumps({"model_type": "llama", key: said}).encode()
        with pytest.raises(GqcError, match=r"'mlx' \(MLX's layout; convert the model from"):
            sample.open(tmp_path)
