"""compressed-tensors: its library decompresses what is written to the weight that we have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from checkpoints.memory import Memory, layer
from checkpoints.samples import SAMPLES
from checkpoints.test_save import WEIGHT, check
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig

import gqc
from gqc.checkpoints.checkpoint import open_checkpoint
from gqc.checkpoints.weights import Permuted, Prescaled, Rotated, Transposed, dense
from gqc.checkpoints.write_compressed_tensors import (
    FUSED,
    divisor_of,
    fused_name,
    reciprocal_tensor_scale,
    targets,
)
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled

FORMAT = "compressed-tensors"
MODULE = WEIGHT.removesuffix("weight")


def integers(bits: int, scale: str, group: str = "g32", symmetric: bool = False) -> str:
    """A scheme that the format has, asymmetric with zero points that are codes."""
    if symmetric:
        return f"si{bits} {group} scale={scale} quantizer=rtn scale_rule=half"
    zero = f"zero=ui{bits} zero_mode=quantized"
    return f"ui{bits} {group} scale={scale} {zero} quantizer=rtn scale_rule=minmax"


HELD: dict[str, str] = {
    **{f"int{b}_g32_sym": "pack-quantized" for b in (2, 3, 4, 5, 6, 7, 8)},
    **{integers(b, "bf16"): "pack-quantized" for b in range(1, 9)},
    **{
        integers(4, scale, "row", sym): "pack-quantized"
        for scale in ("f16", "f32")
        for sym in (False, True)
    },
    "w4a16_nvfp4": "nvfp4-pack-quantized",
    "nvfp4_static": "nvfp4-pack-quantized",
    "w4a16_nvfp4+scale_search": "nvfp4-pack-quantized",
    "w4a16_mxfp4": "mxfp4-pack-quantized",
    "mxfp4_even": "mxfp4-pack-quantized",
    "mxfp8_mxfp4_rceil": "mxfp4-pack-quantized",
    "w6a16_mxfp6": "mxfp6-pack-quantized",
    "w8a16_mxfp8": "mxfp8-quantized",
    "mxfp8_rceil": "mxfp8-quantized",
}
"""Schemes that the format has, and as what."""


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the layer by their last names."""
    tensors = open_checkpoint(folder).reader.tensors  # pyright: ignore[reportAttributeAccessIssue]
    names = [name for name in tensors.specs if name.startswith(MODULE) and name != f"{MODULE}bias"]
    return {name.removeprefix(MODULE): tensors.read(name) for name in names}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def decompressed(folder: Path) -> torch.Tensor:
    """The weight that the library makes of the layer, by what it makes of the config."""
    config = QuantizationConfig.model_validate(config_of(folder))
    (scheme,) = config.config_groups.values()
    compressor: Any = BaseCompressor.get_value_from_registry(scheme.format)  # pyright: ignore
    return compressor.decompress(tensors_of(folder), scheme)["weight"]


@pytest.mark.parametrize("scheme", HELD)
def test_the_library_reads_it(scheme: str, tmp_path: Path) -> None:
    """To the bit, in the format that it computes in; NVFP4 as below."""
    source = layer(scheme)
    weight = source.weights[WEIGHT]
    assert isinstance(weight, BlockScaled)
    if weight.tensor_scale is not None:  # one that the format has
        weight.tensor_scale = reciprocal_tensor_scale(weight.tensor_scale)
    if weight.type.format.is_integer:
        weight.scale[::2].neg_()  # as the scale search makes them
    gqc.save(source, tmp_path / "out", FORMAT)
    assert config_of(tmp_path / "out")["format"] == HELD[scheme]
    theirs = decompressed(tmp_path / "out")
    ours = weight.dequantize(torch.float64)
    assert theirs.shape == ours.shape
    if weight.tensor_scale is None:
        assert torch.equal(theirs, ours.to(theirs.dtype))
    else:  # it divides by the divisor in float32, then rounds
        low, high = (ours * (1 - 2**-22), ours * (1 + 2**-22))
        near = [(theirs == bound.to(theirs.dtype)) for bound in (low, high)]
        assert (near[0] | near[1]).all()
    check(source, tmp_path / "out")


FP8_BLOCKS = {"tensor": (None, None), "channel": (1, None), "group": (1, 32), "block": (16, 32)}


@pytest.mark.parametrize("strategy", FP8_BLOCKS)
def test_the_library_reads_fp8(strategy: str, tmp_path: Path) -> None:
    from gqc.checkpoints.weights import block_scaled

    n, k = 48, 256
    rows, columns = (b or e for b, e in zip(FP8_BLOCKS[strategy], (n, k), strict=True))
    codes = torch.randn(n, k, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    scale = torch.rand(n // rows, k // columns).bfloat16() + 0.5
    weight = block_scaled("f8E4M3FN", FP8_BLOCKS[strategy], codes.view(torch.uint8), scale)
    source = Memory({WEIGHT: weight})
    gqc.save(source, tmp_path / "out", FORMAT)
    (group,) = config_of(tmp_path / "out")["config_groups"].values()
    assert (group["format"], group["weights"]["strategy"]) == ("float-quantized", strategy)
    assert torch.equal(decompressed(tmp_path / "out"), weight.dequantize(torch.bfloat16))
    check(source, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:inputs that the checkpoint quantizes")
@pytest.mark.parametrize("variant", SAMPLES["compressed_tensors"])
def test_what_the_library_wrote_is_written_again(variant: str, tmp_path: Path) -> None:
    source = SAMPLES["compressed_tensors"][variant]().open(tmp_path)
    if variant == "int_tensor_f32":
        with pytest.raises(GqcError, match=r"no such scales or blocks of si8"):
            gqc.save(source, tmp_path / "out", FORMAT)
        return
    gqc.save(source, tmp_path / "out", FORMAT)
    found = open_checkpoint(tmp_path / "out")
    for name in source.names():
        assert torch.equal(dense(found.read(name)), dense(source.read(name)))


def test_divisors_give_tensor_scales_back_where_float32_can() -> None:
    """Below √2 of a power of two always; above, the neighbour at worst."""
    m = 1 + torch.rand(3000, generator=torch.Generator().manual_seed(0))
    for e in (-20, 0, 3):
        for scale in (m * 2.0**e).tolist():
            exact = torch.tensor(scale)
            back = divisor_of(exact).reciprocal()
            error = abs(back.item() - exact.item()) / 2.0**e
            assert error == 0 if scale / 2.0**e < 2**0.5 - 1e-6 else error <= 2**-23


def test_reciprocal_tensor_scales_stay() -> None:
    for scale in torch.rand(2000, generator=torch.Generator().manual_seed(1)) + 0.001:
        once = reciprocal_tensor_scale(scale)
        assert once.shape == () and once.dtype == torch.float32
        assert torch.equal(reciprocal_tensor_scale(once), once)


def unheld() -> dict[str, tuple[Memory, str]]:
    """What the format cannot hold, and what is said."""
    wrapped = {}
    order, factor = torch.randperm(256), torch.ones(256)
    for kind, fields in (
        (Permuted, (order,)),
        (Prescaled, (factor,)),
        (Rotated, (32,)),
        (Transposed, ()),
    ):
        source = layer("int4_g32_sym")
        source.weights[WEIGHT] = kind(source.weights[WEIGHT], *fields)  # pyright: ignore
        wrapped[kind.__name__] = source, f"is {kind.__name__}: quantize it without transforms"
    named = layer("int4_g32_sym")
    named.weights["experts.gate_up_proj"] = named.weights.pop(WEIGHT)
    return wrapped | {
        "float zero points": (layer("int4_g32"), "zero points must be codes"),
        "E5M2": (layer("w8a16_mxfp8_e5m2"), "no such codes: use si"),
        "E3M2": (layer("w6a16_mxfp6_e3m2"), "no such codes"),
        "MXINT8": (layer("w8a16_mxint8"), "no such scales or blocks of si8"),
        "dynamic": (layer("nvfp4"), "use nvfp4_static or w4a16_nvfp4"),
        "floor": (layer("mxfp8"), "the format's are rounded rceil"),
        "int8 inputs": (layer("mxint8_mxfp4"), "the format has none"),
        "name": (named, "is not called `weight`"),
    }


@pytest.mark.parametrize("case", unheld())
def test_what_it_cannot_hold_is_told_before_anything_is_written(case: str, tmp_path: Path) -> None:
    source, said = unheld()[case]
    with pytest.raises(GqcError, match=rf"cannot hold 1 weight:\n  [\w.]+: .*{re.escape(said)}"):
        gqc.save(source, tmp_path / "out", FORMAT)
    assert not (tmp_path / "out").exists()


def test_all_that_it_cannot_hold_is_named(tmp_path: Path) -> None:
    source = layer("int4_g32")
    source.weights |= layer("w8a16_mxint8", name="model.layers.1.mlp.up_proj").weights
    with pytest.raises(GqcError, match=r"(?s)2 weights:.*layers\.0\..*layers\.1\..*format 'gqc'"):
        gqc.save(source, tmp_path / "out", FORMAT)


def model(schemes: dict[str, str]) -> Memory:
    """Two layers with weights by scheme, and embeddings."""
    source = Memory({"model.embed_tokens.weight": torch.ones(8, 64)})
    for i in range(2):
        for leaf, scheme in schemes.items():
            name = f"model.layers.{i}.{leaf}"
            source.weights |= layer(scheme, 8 + 8 * len(source.weights), 64, name).weights
    return source


def test_groups_name_their_layers_and_others_are_ignored(tmp_path: Path) -> None:
    source = model({"mlp.up_proj": "w4a16_mxfp4", "self_attn.o_proj": "int4_g32_sym"})
    source.weights |= layer("int4_g32_sym", 8, 64, "lm_head").weights
    source.weights["model.layers.0.mlp.up_proj.weight"] = torch.ones(8, 64)
    gqc.save(source, tmp_path / "out", FORMAT)
    config = config_of(tmp_path / "out")
    assert config["format"] == "mixed-precision"
    by_format = {group["format"]: group["targets"] for group in config["config_groups"].values()}
    assert by_format == {
        "mxfp4-pack-quantized": ["model.layers.1.mlp.up_proj"],
        "pack-quantized": [r"re:model\.layers\.\d+\.self_attn\.o_proj$", "lm_head"],
    }
    assert config["ignore"] == ["model.embed_tokens", "model.layers.0.mlp.up_proj"]
    check(source, tmp_path / "out")


def test_patterns_are_for_all_that_are_alike_or_none() -> None:
    names = [f"a.{i}.x.weight" for i in range(3)]
    assert targets(names, names) == [r"re:a\.\d+\.x$"]
    assert targets(names[:2], names) == ["a.0.x", "a.1.x"]


def test_tensor_scales_of_layers_that_vllm_merges_should_agree(tmp_path: Path) -> None:
    source = model({f"self_attn.{leaf}": "w4a16_nvfp4" for leaf in ("q_proj", "k_proj", "o_proj")})
    with pytest.warns(UserWarning, match=r"differ within 2 groups of layers .*\{q_proj,k_proj,v_"):
        gqc.save(source, tmp_path / "out", FORMAT)
    assert fused_name("a.o_proj.weight", FUSED) == "a.o_proj.weight"


def test_scales_that_loaders_would_round_are_told(tmp_path: Path) -> None:
    source = layer("int4_g32_sym")
    source.config = {"dtype": "bfloat16"}
    with pytest.warns(UserWarning, match=r"scales are f16, and the model is bf16"):
        gqc.save(source, tmp_path / "out", FORMAT)


LOADED = [
    *(integers(4, "bf16"), integers(3, "bf16", symmetric=True), "w4a16_nvfp4", "w4a16_mxfp4"),
    *("w8a16_mxfp8", "w6a16_mxfp6"),
]


@pytest.mark.parametrize("scheme", LOADED)
def test_transformers_loads_it(scheme: str, tmp_path: Path) -> None:
    """A model quantized by us is the model with our weights, in bfloat16."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    from gqc.checkpoints.quantizing import Quantizing
    from gqc.checkpoints.save import WRITERS

    tiny_llama(tmp_path / "in")
    source = Quantizing(open_checkpoint(tmp_path / "in"), scheme, writer=WRITERS[FORMAT])
    gqc.save(source, tmp_path / "out", FORMAT)
    # Of asymmetric weights the library 0.20 loads none, its own either, unless it dequantizes them.
    config = (
        {"quantization_config": CompressedTensorsConfig(dequantize=True)}
        if "zero" in scheme
        else {}
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True, **config)
    loaded(torch.arange(5)[None])  # decompresses
    found = open_checkpoint(tmp_path / "out")
    quantized = 0
    for name in found.names():
        weight = found.read(name)
        quantized += isinstance(weight, BlockScaled)
        assert torch.equal(loaded.get_parameter(name), dense(weight).bfloat16()), name
    assert quantized == 14


def tiny_llama(folder: Path) -> None:
    torch.manual_seed(0)
    small_models.llama(tie_word_embeddings=True).bfloat16().save_pretrained(folder)
