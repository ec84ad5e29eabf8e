"""Quark's configs: layers by their names, inputs, and what is not read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.quark import QUARK, SECOND, quark
from checkpoints.sample import LAYER, Sample, tensors_of
from safetensors.torch import save

from gqc.errors import GqcError

NAME = f"{LAYER}.weight"


def configured(sample: Sample, **changes: Any) -> Sample:
    config = json.loads(sample.files["config.json"])
    config["quantization_config"] |= changes
    sample.files["config.json"] = json.dumps(config).encode()
    return sample


def with_tensor(sample: Sample, name: str) -> Sample:
    tensors = tensors_of(sample.files["model.safetensors"])
    sample.files["model.safetensors"] = save({**tensors, name: torch.ones(1)})
    return sample


@pytest.mark.parametrize("pattern", ["*.mlp.*", LAYER])
def test_layers_are_told_by_patterns(pattern: str, tmp_path: Path) -> None:
    named = {"*.attn.*": {"weight": QUARK["fp8"]}, pattern: {"weight": QUARK["int4"]}}
    other = {"weight": QUARK["mxfp4"]}
    sample = configured(quark("int4"), layer_quant_config=named, global_quant_config=other)
    sample.check(tmp_path)


def test_inputs_are_quantized_where_gqc_can(tmp_path: Path) -> None:
    found = {}
    for name in ("mxfp4", "nvfp4", "int4"):
        (tmp_path / name).mkdir()
        checkpoint = quark(name).open(tmp_path / name)
        found[name] = checkpoint.activation(NAME)
        scale = checkpoint.input_scale(NAME)
        assert (scale == 0.5) if name == "nvfp4" else scale is None
    assert str(found["mxfp4"].type(2).scale) == "f8E8M0FNU" and not found["mxfp4"].static
    assert str(found["nvfp4"].type(2).scale) == "f8E4M3FN" and found["nvfp4"].static
    assert found["int4"] is None
    checkpoint = quark("fp8").open(tmp_path)
    with pytest.warns(UserWarning, match="inputs that the checkpoint quantizes to fp8_e4m3 are"):
        assert checkpoint.activation(NAME) is None


def test_the_cache_is_left_and_said(tmp_path: Path) -> None:
    sample = with_tensor(quark("int4"), "model.layers.0.self_attn.k_proj.output_scale")
    with pytest.warns(UserWarning, match="quantizes the cache of keys and values, which is left"):
        sample.check(tmp_path)


@pytest.mark.parametrize(
    ("weight", "told"),
    [
        ([SECOND, QUARK["int4_row"]], "are not read, but int4, uint4, int8, uint8, fp8_e4m3"),
        (QUARK["int4"] | {"dtype": "int2"}, "'dtype': 'int2'.* are not read"),
        (QUARK["mxfp4"] | {"scale_format": "float"}, "'scale_format': 'float'.* are not read"),
        (QUARK["int8_row"] | {"ch_axis": 1}, "per_channel along ch_axis 1, expected 0"),
        ("int4", "'int4' does not describe a tensor"),
    ],
    ids=str,
)
def test_weights_that_are_not_read(weight: Any, told: str, tmp_path: Path) -> None:
    sample = configured(quark("int4"), global_quant_config={"weight": weight})
    with pytest.raises(GqcError, match=f"quantization config: .*{told}"):
        sample.open(tmp_path)


def test_what_else_is_not_read(tmp_path: Path) -> None:
    config = {"weight": QUARK["int4"], "bias": QUARK["int4"]}
    with pytest.raises(GqcError, match="biases are quantized, which is not read"):
        configured(quark("int4"), global_quant_config=config).open(tmp_path)
    with pytest.raises(GqcError, match="weight_format must be real_quantized"):
        configured(quark("int4"), export={"weight_format": "fake_quantized"}).open(tmp_path)
    with pytest.raises(GqcError, match="pack_method is 'shuffle', not order, reorder"):
        configured(quark("int4"), export={"pack_method": "shuffle"}).open(tmp_path)
    with pytest.raises(GqcError, match="input_rotation rotates inputs, which is not read: export"):
        with_tensor(quark("int4"), f"{LAYER}.input_rotation").open(tmp_path)
    checkpoint = configured(quark("int4"), global_quant_config={}).open(tmp_path)
    with pytest.raises(GqcError, match="weight is quantized, but the config does not say how"):
        checkpoint.read(NAME)


@pytest.mark.parametrize(("group", "dtype"), [(64, "int4"), (32, "uint4")])
def test_parts_that_contradict_the_config(group: int, dtype: str, tmp_path: Path) -> None:
    sample = quark("int4")
    tensors = tensors_of(sample.files["model.safetensors"])
    del tensors[f"{LAYER}.weight_zero_point"]
    sample.files["model.safetensors"] = save(tensors)
    weight = QUARK["int4"] | {"group_size": group, "dtype": dtype}
    checkpoint = configured(sample, global_quant_config={"weight": weight}).open(tmp_path)
    with pytest.raises(GqcError, match=r"in groups of 64|is missing, of unsigned weights"):
        checkpoint.read(NAME)
