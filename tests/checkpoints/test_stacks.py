"""Experts in one quantized parameter run as they are stored, or are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
import transformers
from checkpoints import packers
from checkpoints.packed import e4m3, e8m0
from checkpoints.sample import codes_of, scales_of
from safetensors.torch import save_file

import gqc
from gqc.checkpoints.checkpoint import open_checkpoint
from gqc.checkpoints.weights import dense
from gqc.errors import GqcError

Parts = dict[str, torch.Tensor]
TOKENS = torch.randint(0, 96, (1, 9), generator=torch.Generator().manual_seed(0))


def small(values: torch.Tensor) -> torch.Tensor:
    """Scales by which weights are of the size that models are initialized to."""
    return values / 1000


def fp8(suffix: str, shape: Callable[..., tuple[int, ...]]) -> Callable[..., tuple[Parts, Any]]:
    def make(e: int, n: int, k: int) -> tuple[Parts, torch.Tensor]:
        codes = e4m3(e, n, k, seed=n)
        scale = small(scales_of(*shape(e, n, k), dtype=torch.float32, seed=k))
        each = scale.double()
        if each.ndim == 3:
            for dim, extent in ((1, n), (2, k)):
                each = each.repeat_interleave(-(-extent // each.shape[dim]), dim)
        return {"": codes, suffix: scale}, codes.double() * each

    return make


def nvfp4(e: int, n: int, k: int) -> tuple[Parts, torch.Tensor]:
    codes, scale, factor = codes_of(4, e, n, k), e4m3(e, n, k // 16), torch.tensor(2e-4)
    values = packers.fp4_values(codes) * scale.double().repeat_interleave(16, 2) * factor.double()
    stored = packers.pack_bytes(codes.view(-1, k), 4).view(e, n, k // 2)
    return {"": stored, "_weight_scale": scale, "_weight_scale_2": factor}, values


def mxfp4(e: int, n: int, k: int) -> tuple[Parts, torch.Tensor]:
    codes, scale = codes_of(4, e, n, k), e8m0(e, n, k // 32) - 8
    each = torch.exp2(scale.double() - 127).repeat_interleave(32, 2)
    stored = packers.pack_bytes(codes.view(-1, k), 4).view(e, n, k // 2)
    return {"": stored, "_weight_scale": scale}, packers.fp4_values(codes) * each


FP8: dict[str, Any] = {"quant_method": "fp8"}
FORMS: dict[str, tuple[dict[str, Any], Callable[..., tuple[Parts, Any]]]] = {
    "blocks": (
        FP8 | {"weight_block_size": [16, 32]},
        fp8("_scale_inv", lambda e, n, k: (e, n // 16, k // 32)),
    ),
    "one each": (FP8, fp8("_scale_inv", lambda e, n, k: (e, 1, 1))),
    "rows": (FP8 | {"quant_method": "fbgemm_fp8"}, fp8("_scale", lambda e, n, k: (e, n, 1))),
    "modelopt": (
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        fp8("_weight_scale", lambda *sizes: ()),
    ),
    "nvfp4": ({"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4"}, nvfp4),
    "mxfp4": ({"quant_method": "modelopt", "quant_algo": "W4A16_MXFP4"}, mxfp4),
}


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    if kind != "llama4":
        return small_models.experts(kind, num_hidden_layers=1)
    sizes: Any = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    heads: Any = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.Llama4TextConfig(**sizes, **heads, num_local_experts=4)
    return transformers.Llama4ForCausalLM(config).eval()


def write(kind: str, form: str, folder: Path) -> Any:
    """A checkpoint of a model with such experts, and the model with the values of these."""
    model, (said, make) = model_of(kind), FORMS[form]
    turned = kind in ("gpt_oss", "llama4")
    tensors = {}
    for name, tensor in model.state_dict().items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name] = tensor
            continue
        e, n, k = tensor.transpose(1, 2).shape if turned else tensor.shape
        parts, values = make(e, n, k)
        tensor.copy_(values.transpose(1, 2) if turned else values)
        for part, stored in parts.items():
            move = turned and stored.ndim == 3
            tensors[name + part] = stored.transpose(1, 2).contiguous() if move else stored
        if form == "modelopt":
            tensors[f"{name}_input_scale"] = torch.ones(1)
    save_file(tensors, folder / "model.safetensors")
    config = model.config.to_dict() | {"quantization_config": said}
    (folder / "config.json").write_text(json.dumps(config))
    return model


STORED = [
    *(("mixtral", form) for form in FORMS),
    *(("gpt_oss", form) for form in ("rows", "modelopt", "nvfp4", "mxfp4")),
    *(("llama4", form) for form in ("rows", "nvfp4")),
]


@pytest.mark.parametrize(("kind", "form"), STORED)
def test_stacks_are_read_as_they_are_stored(kind: str, form: str, tmp_path: Path) -> None:
    state = write(kind, form, tmp_path).state_dict()
    checkpoint = open_checkpoint(tmp_path)
    assert {*checkpoint.names()} == state.keys()
    stacks = [name for name in state if name.endswith(("gate_up_proj", "experts.down_proj"))]
    for name in stacks:
        weight = checkpoint.read(name)
        assert not isinstance(weight, torch.Tensor)
        assert torch.equal(dense(weight, torch.float64).float(), state[name])
    assert len(stacks) == 2


@pytest.mark.filterwarnings("ignore:inputs that the checkpoint quantizes")
@pytest.mark.filterwarnings("ignore:left as they are, being no plain")
@pytest.mark.filterwarnings("ignore:every layer was kept")
@pytest.mark.parametrize(
    ("kind", "form", "count"),
    [("mixtral", "blocks", 12), ("gpt_oss", "modelopt", 8), ("llama4", "rows", 0)],
)
def test_a_model_runs_with_stacks(kind: str, form: str, count: int, tmp_path: Path) -> None:
    """Experts of llama4 run as one, decoded."""
    model = write(kind, form, tmp_path)
    loaded = gqc.load(tmp_path, target="cpu", dtype=torch.float32)
    with torch.no_grad():
        found, expected = (each(input_ids=TOKENS).logits for each in (loaded, model))
    assert expected.std() > 0.01
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    rows = loaded.report().rows
    assert sum(".experts." in row.layer and bool(row.kernels) for row in rows) == count


@pytest.mark.parametrize(
    ("part", "shape", "told"),
    [
        ("_scale_inv", (4, 3, 2), r"\[4, 3, 2\] for 4 weights \[128, 64\], expected one factor"),
        ("_scale_inv", (4, 2, 2), "that end where half of 128 rows do"),
    ],
)
def test_factors_of_other_shapes_are_refused(
    part: str, shape: tuple[int, ...], told: str, tmp_path: Path
) -> None:
    write("mixtral", "blocks", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = [96, 32]  # of 64 and 64 rows
    (tmp_path / "config.json").write_text(json.dumps(config))
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = {name: e4m3(4, 128, 64), f"{name}{part}": torch.ones(shape)}
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.names() == [name]
    with pytest.raises(GqcError, match=told):
        checkpoint.read(name)


def test_experts_are_told_by_their_module(tmp_path: Path) -> None:
    state = write("mixtral", "modelopt", tmp_path).state_dict()
    config = json.loads((tmp_path / "config.json").read_text())
    layers = {"model.layers.0.mlp.experts": {"quant_algo": "FP8"}}
    said = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    name = "model.layers.0.mlp.experts.down_proj"
    assert torch.equal(dense(open_checkpoint(tmp_path).read(name), torch.float32), state[name])


def test_other_experts_in_one_parameter_are_refused(tmp_path: Path) -> None:
    write("mixtral", "modelopt", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["quant_algo"] = "W8A16"
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(GqcError, match=r"gate_up_proj is of experts, in W8A16: only NVFP4"):
        checkpoint.read("model.layers.0.mlp.experts.gate_up_proj")
