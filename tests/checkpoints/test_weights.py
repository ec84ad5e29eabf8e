"""What readers give: types, orders, schemes of inputs."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import packed, peers
from checkpoints.sample import LAYER, Sample, tensors_of
from checkpoints.samples import SAMPLES
from safetensors.torch import save

from gqc.checkpoints.checkpoint import Checkpoint
from gqc.checkpoints.weights import Permuted, Prescaled, Transposed, block_scaled, dense
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.schemes import NVFP4, mx

WEIGHT = f"{LAYER}.weight"

TYPES = {
    "awq/gemm": "1x32 : f16 : ui4, zero = ui4, zero_mode = quantized",
    "awq/gemm_row": "1x128 : f16 : ui4, zero = ui4, zero_mode = quantized",
    "awq/gemv_fast": "1x32 : f16 : ui4, zero = f16, zero_mode = rescale",
    "gptq/3bit_v1": "1x32 : f16 : ui3, zero = ui3, zero_mode = quantized",
    "gptq/sym": "1x32 : f16 : si4",
    "hqq/2bit_axis1": "1x32 : f16 : ui2, zero = f16, zero_mode = original",
    "compressed_tensors/pack_4bit": "1x32 : bf16 : si4",
    "compressed_tensors/pack_4bit_asym": ("1x32 : bf16 : ui4, zero = ui4, zero_mode = quantized"),
    "compressed_tensors/nvfp4": "1x16 : f8E4M3FN : f4E2M1FN, global = f32",
    "compressed_tensors/mxfp6": "1x32 : f8E8M0FNU : f6E2M3FN",
    "compressed_tensors/float_block": "16x64 : bf16 : f8E4M3FN",
    "modelopt/NVFP4": "1x16 : f8E4M3FN : f4E2M1FN, global = f32",
    "modelopt/FP8": "?x? : f32 : f8E4M3FN",
    "modelopt/FP8_PER_CHANNEL_PER_TOKEN": "1x? : f32 : f8E4M3FN",
    "modelopt/fp8_pb_wo": "8x128 : f32 : f8E4M3FN",
    "modelopt/MXFP8": "1x32 : f8E8M0FNU : f8E4M3FN",
    "modelopt/W4A8_MXFP4_FP8": "1x32 : f8E8M0FNU : f4E2M1FN",
    "fp8/mistral": "?x? : f32 : f8E4M3FN",
    "fp8/autofp8": "?x? : bf16 : f8E4M3FN",
    "fp8/row": "1x? : f16 : f8E5M2",
    "fp8/fbgemm": "1x? : f32 : f8E4M3FN",
    "fp8/null_blocks": "32x64 : f32 : f8E4M3FN",
    "bitsandbytes/nf4_nested": "1x64 : f32 : nf4",
    "bitsandbytes/nf4_across_rows": "1x32 : f32 : nf4",
    "bitsandbytes/fp4": "1x64 : f32 : fp4_bnb",
    "bitsandbytes/int8": "1x? : f32 : si8",
    "fp8/ue8m0": "32x64 : f8E8M0FNU : f8E4M3FN",
    "torchao/int4": "1x32 : bf16 : si4, zero = bf16, zero_mode = rescale",
    "torchao/mxfp8": "1x32 : f8E8M0FNU : f8E4M3FN",
    "gguf/q4_1": "1x32 : f16 : ui4, zero = f16, zero_mode = rescale",
    "gguf/q4_k": "1x32 : f32 : ui4, zero = f32, zero_mode = rescale",
    "gguf/q6_k": "1x16 : f32 : si6",
    "gguf/q2_k": "1x16 : f32 : ui2, zero = f32, zero_mode = rescale",
    "gguf/q3_k": "1x16 : f32 : si3",
    "gguf/iq4_nl": "1x32 : f16 : iq4_nl",
    "gguf/iq4_xs": "1x32 : f32 : iq4_nl",
    "gguf/tq2_0": "1x256 : f16 : ui2, zero = f16, zero_mode = rescale",
    "gguf/nvfp4": "1x16 : f8E4M3FN : f4E2M1FN",
    "gguf/mxfp4": "1x32 : f8E8M0FNU : f4E2M1FN",
}


def opened(case: str, folder: Path) -> Checkpoint:
    format, variant = case.split("/")
    return SAMPLES[format][variant]().open(folder)


@pytest.mark.parametrize("case", TYPES)
def test_formats_have_their_types(case: str, tmp_path: Path) -> None:
    weight = opened(case, tmp_path).read(WEIGHT)
    assert isinstance(weight, BlockScaled)
    assert str(weight.type) == f"!gq.block_scaled<{TYPES[case]}>"
    signed = weight.type.format.is_signed_integer
    assert weight.codes.dtype == (torch.int8 if signed else torch.uint8)
    assert weight.scale.shape == weight.type.scale_shape(weight.codes.shape)
    assert weight.codes.is_contiguous() and weight.scale.is_contiguous()


def test_the_order_of_columns_undoes_itself(tmp_path: Path) -> None:
    sample = packed.gptq(4, 1, order=True)
    permuted = sample.open(tmp_path).read(WEIGHT)
    assert isinstance(permuted, Permuted)
    model = sample.parameters[WEIGHT]
    inside = permuted.weight.dequantize(torch.float64)
    assert torch.equal(inside, model[:, permuted.order])
    x = torch.randint(-9, 9, (3, model.shape[1])).double()
    torch.testing.assert_close(x @ model.T, x[:, permuted.order] @ inside.T, rtol=1e-14, atol=1e-12)


def test_groups_in_order_need_no_permutation(tmp_path: Path) -> None:
    """`desc_act` of a model whose groups came out in order."""
    sample = packed.gptq(4, 1, order=False)
    sample.files["config.json"] = sample.files["config.json"].replace(
        b'"desc_act": false', b'"desc_act": true'
    )
    assert isinstance(sample.check(tmp_path).read(WEIGHT), BlockScaled)


def test_hqq_on_axis_0_is_in_blocks_of_rows(tmp_path: Path) -> None:
    weight = packed.hqq(4, axis=0).open(tmp_path).read(WEIGHT)
    assert isinstance(weight, Permuted) and weight.dim == 0
    assert weight.weight.type.block_of(weight.weight.codes.shape) == (32, 1)


def test_hqq_codes_may_be_seen_as_floats(tmp_path: Path) -> None:
    """Bits of codes may be those of NaN."""
    sample = packed.hqq(4, axis=1, view_as_float=True)
    assert isinstance(sample.check(tmp_path).read(WEIGHT), BlockScaled)


def test_prescaled_weights_are_for_scaled_inputs(tmp_path: Path) -> None:
    sample = packed.modelopt("W4A16_AWQ")
    weight = sample.open(tmp_path).read(WEIGHT)
    assert isinstance(weight, Prescaled)
    x = torch.randint(-9, 9, (3, 64)).double()
    found = (x * weight.factor.double()) @ weight.weight.dequantize(torch.float64).T
    torch.testing.assert_close(found, x @ sample.parameters[WEIGHT].T, rtol=1e-14, atol=1e-12)


def test_experts_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    checkpoint = packed.gpt_oss().open(tmp_path)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    weight = checkpoint.read(name)
    assert isinstance(weight, Transposed) and isinstance(weight.weight, BlockScaled)
    assert str(weight.weight.type) == "!gq.block_scaled<1x1x32 : f8E8M0FNU : f4E2M1FN>"
    stored = checkpoint.reader.tensors.read  # pyright: ignore[reportAttributeAccessIssue]
    theirs = convert_moe_packed_tensors(
        stored(f"{name}_blocks"), stored(f"{name}_scales"), dtype=torch.float32
    )
    assert torch.equal(dense(weight), theirs)


@pytest.mark.parametrize("variant", ["mistral", "null_blocks", "ue8m0", "fbgemm"])
def test_fp8_is_what_transformers_makes_of_it(variant: str, tmp_path: Path) -> None:
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    sample = packed.fp8_variant(variant)
    checkpoint = sample.open(tmp_path)
    stored = checkpoint.reader.tensors.read  # pyright: ignore[reportAttributeAccessIssue]
    part = packed.FP8[variant][1]
    codes, scale = stored(WEIGHT), stored(f"{LAYER}.{part}")
    block = [128, 128] if scale.ndim == 2 and scale.shape[1] > 1 else None
    theirs = _dequantize_fp8_weight(codes, scale, block, torch.float32)
    assert torch.equal(dense(checkpoint.read(WEIGHT), torch.float32), theirs)


@pytest.mark.parametrize(
    "part, value, words",
    [
        ("quant_map", torch.linspace(-1, 1, 16), "has other values than those of nf4"),
        ("absmax", torch.ones(3), r"is F32 \[3\], expected F32 \[32\]"),
        ("bitsandbytes__nf4", torch.tensor([*b'{"shape": [4]}']).byte(), "is no state of a weight"),
        ("bitsandbytes__nf4", torch.tensor([*b"[1"]).byte(), "is no state of a weight"),
        ("mlp.down_proj.weight", torch.ones(7, 1).byte(), r"is U8 \[7, 1\], expected 1024 bytes"),
    ],
)
def test_damaged_parts_of_bitsandbytes_are_told(
    part: str, value: torch.Tensor, words: str, tmp_path: Path
) -> None:
    sample = packed.bitsandbytes("nf4")
    content = tensors_of(sample.files["model.safetensors"])
    (name,) = (name for name in content if name.endswith(part))
    content[name] = value
    sample.files["model.safetensors"] = save(content)
    with pytest.raises(GqcError, match=words):
        sample.open(tmp_path).read(WEIGHT)


def test_codes_of_bitsandbytes_without_a_state_are_told(tmp_path: Path) -> None:
    sample = packed.bitsandbytes("nf4")
    content = tensors_of(sample.files["model.safetensors"])
    del content[f"{WEIGHT}.quant_state.bitsandbytes__nf4"]
    sample.files["model.safetensors"] = save(content)
    with pytest.raises(GqcError, match=r"without quant_state\.bitsandbytes__nf4"):
        sample.open(tmp_path).read(WEIGHT)


def test_fp8_factors_of_another_shape_are_told(tmp_path: Path) -> None:
    sample = packed.fp8_variant("null_blocks")
    content = tensors_of(sample.files["model.safetensors"])
    content[f"{LAYER}.weight_scale_inv"] = torch.ones(3, 3)
    sample.files["model.safetensors"] = save(content)
    words = (
        r"weight_scale_inv is F32 \[3, 3\] for a weight \[160, 320\], expected \[\] .*\[2, 3\] for"
    )
    with pytest.raises(GqcError, match=words):
        sample.open(tmp_path).read(WEIGHT)


@pytest.mark.parametrize("case", ["fp8/mistral", "modelopt/FP8"])
def test_a_quantized_cache_is_left_and_told(case: str, tmp_path: Path) -> None:
    format, variant = case.split("/")
    sample = SAMPLES[format][variant]()
    content = tensors_of(sample.files["model.safetensors"])
    content["model.layers.0.self_attn.k_proj.k_scale"] = torch.tensor(0.5)
    sample.files["model.safetensors"] = save(content)
    with pytest.warns(UserWarning, match="cache of keys and values, which is left as it is"):
        sample.check(tmp_path)


@pytest.mark.parametrize(
    "said", [{"quant_library": "modelopt"}, {"producer": {"name": "modelopt", "version": "0.40"}}]
)
def test_modelopt_may_name_itself_as_the_producer_alone(said: dict, tmp_path: Path) -> None:
    sample = packed.modelopt("FP8")
    config = json.loads(sample.files["config.json"])
    del config["quantization_config"]["quant_method"]
    config["quantization_config"] |= said
    sample.files["config.json"] = json.dumps(config).encode()
    assert sample.check(tmp_path).format == "modelopt"


INPUTS = {
    "compressed_tensors/nvfp4": (replace(NVFP4, static=True), 1 / 8),
    "modelopt/NVFP4": (replace(NVFP4, static=True), 0.5),
    "torchao/nvfp4_swizzled_static": (replace(NVFP4, static=True), 0.25),
    "compressed_tensors/mxfp8_inputs": (mx("f8E4M3FN", "rceil"), None),
    "compressed_tensors/mxfp4_inputs": (mx("f4E2M1FN", "even"), None),
    "torchao/mxfp8": (mx("f8E4M3FN", "rceil"), None),
    "modelopt/MXFP8": (mx("f8E4M3FN", "rceil"), None),
    "modelopt/fp8_pb_wo": (None, None),
    "compressed_tensors/mxfp4": (None, None),
    "torchao/nvfp4": (None, None),
    "awq/gemm": (None, None),
    "gguf/q4_0": (None, None),
}


@pytest.mark.parametrize("case", INPUTS)
def test_inputs_are_quantized_as_the_checkpoint_says(case: str, tmp_path: Path) -> None:
    scheme, scale = INPUTS[case]
    checkpoint = opened(case, tmp_path)
    with warnings.catch_warnings(action="error"):
        assert checkpoint.activation(WEIGHT) == scheme
        assert checkpoint.activation("model.norm.weight") is None
    found = checkpoint.input_scale(WEIGHT)
    assert (found is None) == (scale is None)
    if found is not None:
        assert found.dtype == torch.float32 and found.shape == () and found.item() == scale


@pytest.mark.parametrize(
    "case", ["compressed_tensors/int_inputs", "modelopt/FP8", "fp8/blocks", "torchao/float8_inputs",
     "fp8/fbgemm", "modelopt/W4A8_MXFP4_FP8", "modelopt/W8A8_SQ_PER_CHANNEL",
        "bitsandbytes/int8"]
)  # fmt: skip
def test_inputs_that_stay_as_they_are_are_told(case: str, tmp_path: Path) -> None:
    checkpoint = opened(case, tmp_path)
    with pytest.warns(UserWarning, match=r"inputs .* quantizes to .* are left as they are"):
        assert checkpoint.activation(WEIGHT) is None


@pytest.mark.parametrize(
    "case, part",
    [
        ("modelopt/NVFP4", "input_scale"),
        ("compressed_tensors/nvfp4", "input_global_scale"),
        ("torchao/nvfp4_swizzled_static", "_weight_act_per_tensor_scale"),
    ],
)
@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_an_input_that_calibration_did_not_see_has_a_dynamic_scale(
    case: str, part: str, value: float, tmp_path: Path
) -> None:
    """Of an expert that no token went to; a scale that is a divisor is inf where it should be 0."""
    format, variant = case.split("/")
    sample = changed(SAMPLES[format][variant](), part, torch.tensor(value))
    checkpoint = sample.check(tmp_path)
    with pytest.warns(UserWarning, match=rf"{part} is no positive number, .* a dynamic scale"):
        assert checkpoint.activation(WEIGHT) == replace(NVFP4, static=False)
    assert checkpoint.input_scale(WEIGHT) is None
    checkpoint = changed(sample, part, torch.tensor(-1.0)).open(tmp_path)
    with pytest.raises(GqcError, match=rf"{part} is -1.0, expected a positive number"):
        checkpoint.activation(WEIGHT)


def changed(sample: Sample, part: str, value: torch.Tensor) -> Sample:
    """The sample with another tensor for one that ends in `part`, of the shape that it had."""
    content = sample.files["model.safetensors"]
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors = tensors_of(content)
    (name,) = (name for name in tensors if name.endswith(part))
    tensors[name] = value.to(tensors[name].dtype).expand(tensors[name].shape).contiguous()
    files = {**sample.files, "model.safetensors": save(tensors, header.get("__metadata__"))}
    return replace(sample, files=files)


def test_torchao_may_split_a_weight_over_shards(tmp_path: Path) -> None:
    sample = peers.TORCHAO["nvfp4"]()
    split(sample, "_weight_scale").check(tmp_path)


def split(sample: Sample, part: str) -> Sample:
    """The sample with one part of the weight in a file of its own."""
    single = sample.files.pop("model.safetensors")
    header = json.loads(single[8 : 8 + int.from_bytes(single[:8], "little")])
    metadata, tensors = header["__metadata__"], tensors_of(single)
    alone = {name: tensors.pop(name) for name in [*tensors] if name.endswith(part)}
    places = {}
    for i, shard in enumerate((tensors, alone), 1):
        name = f"model-0000{i}-of-00002.safetensors"
        sample.files[name] = save(shard, metadata)
        places |= dict.fromkeys(shard, name)
    sample.files["model.safetensors.index.json"] = json.dumps({"weight_map": places}).encode()
    return sample


def test_blocks_must_divide_the_weight() -> None:
    codes, scale = torch.zeros(4, 48, dtype=torch.uint8), torch.ones(4, 2)
    with pytest.raises(GqcError, match=r"blocks of \[1, 32\] do not divide a weight \[4, 48\]"):
        block_scaled("ui4", (1, 32), codes, scale)
    with pytest.raises(GqcError, match=r"scales \[4, 2\], expected \[4, 3\]"):
        block_scaled("ui4", (1, 16), codes, scale)
    with pytest.raises(GqcError, match=r"zero points \[4, 1\], expected \[4, 2\]"):
        block_scaled("ui4", (1, 24), codes, scale, torch.zeros(4, 1), "original")
