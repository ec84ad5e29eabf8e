"""Mixtures of experts: compiled, quantized under calibration, saved, and loaded as others store
them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import small_models
import torch
import transformers
from checkpoints import packers
from checkpoints.sample import codes_of
from safetensors.torch import load_file, save_file

import gqc
from gqc.checkpoints.checkpoint import open_checkpoint
from gqc.checkpoints.quantizing import Quantizing
from gqc.errors import GqcError

TOKENS = torch.randint(0, 96, (1, 9), generator=torch.Generator().manual_seed(0))


def experts(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return small_models.experts(kind, **{"num_hidden_layers": 1, **options})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("kind", small_models.EXPERTS)
def test_a_checkpoint_quantized_as_it_streams_is_the_compiled_model(
    kind: str, tmp_path: Path
) -> None:
    model = experts(kind)
    model.save_pretrained(tmp_path / "in")
    checkpoint = open_checkpoint(tmp_path / "in")
    source = Quantizing(checkpoint, {"*.mlp.experts.*": "int4_g32"})
    one = "*.experts.down_proj" if kind == "gpt_oss" else "*.experts.3.down_proj"
    assert len(Quantizing(checkpoint, {one: "int4_g32"}).chosen) == 1  # as the model calls it
    stacks = [name for name in source.chosen if "experts" in name]
    assert len(stacks) == {"gpt_oss": 2}.get(kind, 12)
    gqc.save(source, tmp_path / "out")
    loaded = gqc.load(tmp_path / "out", target="cpu")
    compiled = gqc.compile(model, scheme={"*experts*": "int4_g32"}, target="cpu")
    assert torch.equal(logits(loaded), logits(compiled))
    assert not torch.equal(logits(loaded), logits(model))
    rows = {row.layer: row for row in loaded.report().rows}
    layers = [row for layer, row in rows.items() if ".experts." in layer]
    assert len(layers) == {"gpt_oss": 8}.get(kind, 12)
    assert {row.method for row in layers} == {"rtn minmax"}


@pytest.mark.parametrize("kind", small_models.EXPERTS)
def test_a_dense_checkpoint_is_the_model(kind: str, tmp_path: Path) -> None:
    model = experts(kind)
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="every layer was kept as it is"):
        loaded = gqc.load(tmp_path, target="cpu")
    assert torch.allclose(logits(loaded), logits(model), rtol=0, atol=1e-6)


def test_experts_in_mxfp4_are_not_quantized_again(tmp_path: Path) -> None:
    """gpt-oss as it is published: stacks of packed codes and bytes of scales."""
    model = experts("gpt_oss")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    state = model.state_dict()
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        e, k, n = tensors.pop(name).shape
        codes, scale = codes_of(4, e, n, k, seed=n), codes_of(2, e, n, k // 32, seed=k) + 119
        packed = packers.pack_bytes(codes.view(-1, k), 4).view(e, n, k // 32, 16)
        tensors |= {f"{name}_blocks": packed, f"{name}_scales": scale.to(torch.uint8)}
        values = packers.fp4_values(codes).view(e, n, k // 32, 32)
        weight = (values * torch.exp2(scale.double() - 127).unsqueeze(-1)).view(e, n, k)
        state[name].copy_(weight.transpose(1, 2))
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = gqc.load(tmp_path, target="cpu")
    assert torch.allclose(logits(loaded), logits(model), rtol=0, atol=1e-5)
    rows = [row for row in loaded.report().rows if ".experts." in row.layer]
    assert {(row.method, row.format, row.decision) for row in rows} == {
        ("gpt-oss", "1x32 : f8E8M0FNU : f4E2M1FN", "emulated")
    }
    assert len(rows) == 8


def moe_gguf(path: Path, model: Any, architecture: str) -> None:
    """Write a model of experts as llama.cpp has it: gate, up and down of all, each a stack, Q8_0.

    Rows of q and k of a llama are in pairs that rotate together.
    """
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_expert_count(4)
    writer.add_expert_used_count(config.num_experts_per_tok)
    layer = "model.layers.0."
    gate, up = state.pop(f"{layer}mlp.experts.gate_up_proj").chunk(2, 1)
    down = state.pop(f"{layer}mlp.experts.down_proj")
    stacks = {"ffn_gate_exps": gate, "ffn_up_exps": up, "ffn_down_exps": down}
    tensors = {f"blk.0.{name}": stack for name, stack in stacks.items()}
    names = {
        **{f"blk.0.attn_{x}": f"{layer}self_attn.{x}_proj" for x in "qkv"},
        "blk.0.attn_output": f"{layer}self_attn.o_proj",
        "blk.0.attn_norm": f"{layer}input_layernorm",
        "blk.0.ffn_norm": f"{layer}post_attention_layernorm",
        "blk.0.ffn_gate_inp": f"{layer}mlp.gate",
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
    }
    if architecture == "qwen3moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        names |= {f"blk.0.attn_{x}_norm": f"{layer}self_attn.{x}_norm" for x in "qk"}
    tensors |= {name: state.pop(f"{ours}.weight") for name, ours in names.items()}
    assert not state
    if architecture == "llama":
        for name in ("blk.0.attn_q", "blk.0.attn_k"):
            halves = tensors[name].unflatten(0, (-1, 2, config.head_dim // 2))
            tensors[name] = halves.transpose(1, 2).flatten(0, 2)
    for name, tensor in tensors.items():
        values = np.ascontiguousarray(tensor.numpy().astype(np.float32))
        if "_exps" not in name:
            writer.add_tensor(f"{name}.weight", values)
            continue
        type_ = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_of_experts_is_what_transformers_reads(tmp_path: Path) -> None:
    """Which leaves the size of an expert at its default of 768, whatever the file says."""
    model = experts("qwen3_moe", moe_intermediate_size=768)
    moe_gguf(tmp_path / "model.gguf", model, "qwen3moe")
    theirs = transformers.Qwen3MoeForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    loaded = gqc.load(tmp_path / "model.gguf", dtype=torch.float32, target="cpu")
    assert torch.allclose(logits(loaded), logits(theirs), rtol=0, atol=1e-5)
    rows = [row for row in loaded.report().rows if ".experts." in row.layer]
    assert {row.method for row in rows} == {"Q8_0"} and len(rows) == 12


def test_a_gguf_of_mixtral_says_that_it_is_a_llama(tmp_path: Path) -> None:
    model = experts("mixtral")
    moe_gguf(tmp_path / "model.gguf", model, "llama")
    loaded = gqc.load(tmp_path / "model.gguf", dtype=torch.float32, target="cpu")
    assert type(loaded) is type(model)
    for stack in model.state_dict().values():  # what Q8_0 makes of the stacks
        if stack.ndim == 3:
            type_ = gguf.GGMLQuantizationType.Q8_0
            raw = gguf.quants.quantize(stack.numpy(), type_)
            stack.copy_(torch.from_numpy(gguf.quants.dequantize(raw, type_)))
    assert torch.allclose(logits(loaded), logits(model), rtol=0, atol=1e-5)


def test_stacks_of_qwen3_vl_are_published_transposed(tmp_path: Path) -> None:
    """transformers turns those that need it, and saves them turned."""
    text = {"hidden_size": 64, "moe_intermediate_size": 96, "num_hidden_layers": 1, "head_dim": 16}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96, "num_experts": 4}
    text |= {"num_experts_per_tok": 2, "rope_parameters": {"mrope_section": [2, 3, 3]}}
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 64}
    vision |= {"intermediate_size": 32, "deepstack_visual_indexes": [0]}
    config = transformers.Qwen3VLMoeConfig(text_config=text, vision_config=vision)
    torch.manual_seed(0)
    model = transformers.Qwen3VLMoeForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    for turned in (False, True):
        if turned:
            tensors = load_file(tmp_path / "model.safetensors")
            for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
                tensors[name] = tensors[name].transpose(1, 2).contiguous()
            save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        loaded = gqc.load(tmp_path, scheme={"*.experts.*": "int8_g32"}, target="cpu")
        compiled = gqc.compile(model, scheme={"*.experts.*": "int8_g32"}, target="cpu")
        assert torch.equal(logits(loaded), logits(compiled))
        source = Quantizing(open_checkpoint(tmp_path), {"*.experts.*": "int8_g32"})
        assert {linear.transposed for linear, _ in source.chosen.values()} == {turned}


@pytest.mark.parametrize("change", ["lacks an expert", "has one twice", "has another name"])
def test_files_that_are_not_the_model(change: str, tmp_path: Path) -> None:
    experts("qwen3_moe").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.experts.3.down_proj.weight"
    told = "1 parameter of experts missing, .*experts.3.down_proj.weight first: the files are not"
    loads = "1 parameter of Qwen3MoeForCausalLM not stored: .*weight; give the model"
    if change == "has one twice":
        tensors["model.layers.0.mlp.experts.down_proj"] = torch.zeros(4, 64, 32)
        loads = "experts.*down_proj.weight is stored twice, in .* and .*: remove one"
    elif change == "has another name":
        tensors["model.layers.0.mlp.experts.3.down.weight"] = tensors.pop(name)
        loads = "not stored: .*; stored, but not known to it: .*experts.3.down.weight; give"
    else:
        del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(GqcError, match=loads):
        gqc.load(tmp_path)
    if change != "has one twice":
        with pytest.raises(GqcError, match=told):
            Quantizing(open_checkpoint(tmp_path), "int4_g32")


def test_experts_are_calibrated_and_saved(tmp_path: Path) -> None:
    model, scheme = experts("qwen3_moe"), {"*experts*": "int4_g32_sym+awq+gptq"}
    calibration = [torch.tensor([[5, 6, 7]])]
    quantized = gqc.quantize(model, scheme=scheme, calibration=calibration)
    facts = {fact.layer: fact for fact in quantized.facts if fact.scheme}
    assert len(facts) == 12
    for name, fact in facts.items():
        unseen = "no calibration input reached it" in fact.reason
        assert unseen == (fact.rows == 0)
        assert ("aten.index.Tensor computes it" in fact.reason) == (".down_proj" not in name)
    assert {fact.rows for fact in facts.values()} > {0, 1}
    assert sum(f.rows for name, f in facts.items() if ".down_proj" in name) == 3 * 2
    compiled = gqc.compile(model, weights=quantized, target="cpu")
    for format in ("gqc", "compressed-tensors"):
        gqc.save(quantized, tmp_path / format, format=format)
        loaded = gqc.load(tmp_path / format, target="cpu")
        assert torch.equal(logits(loaded), logits(compiled))


def test_a_whole_model_and_a_generator_are_the_model() -> None:
    model = experts("qwen3_moe")
    layers = gqc.compile(model, scheme="int8_g32", target="cpu")
    whole = gqc.compile(model, {"input_ids": TOKENS}, scheme="int8_g32", target="cpu")
    assert torch.allclose(logits(whole), logits(layers), rtol=0, atol=1e-4)
    merged = [row.launch for row in whole.report().rows if row.layer.endswith("experts.1.up_proj")]
    assert merged == [
        "one launch: model.layers.0.mlp.experts.1.gate_proj, model.layers.0.mlp.experts.1.up_proj"
    ]
    generator = gqc.generator(model, length=16, inductor=False, scheme="int8_g32", target="cpu")
    tokens = layers.generate(TOKENS[:, :5], max_new_tokens=6, min_new_tokens=6)
    assert [*generator.generate(TOKENS[0, :5].tolist(), 6)] == tokens[0, 5:].tolist()
