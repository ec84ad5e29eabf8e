"""`gqc.load`: checkpoints of every format, compiled as they are stored."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import small_models
import torch
from checkpoints.memory import Memory
from checkpoints.sample import LAYER, Sample, generator
from checkpoints.samples import SAMPLES
from peak_memory import numbers_of
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

import gqc
from gqc.checkpoints.checkpoint import open_checkpoint
from gqc.checkpoints.weights import BlockScaled, dense
from gqc.driver.stored_weights import codes_of
from gqc.errors import GqcError
from gqc.quantizers import rtn
from gqc.schemes import parse_scheme

WITHOUT_LAYERS = {("dense", "one"), ("dense", "sharded"), ("gpt_oss", "mxfp4"), ("gqc", "experts")}
"""Dense, or of experts, which are no linear layers."""
CASES = [
    pytest.param(make, id=f"{format}-{name}")
    for format, variants in SAMPLES.items()
    for name, make in variants.items()
    if (format, name) not in WITHOUT_LAYERS
]


def module_of(parameters: dict[str, torch.Tensor]) -> nn.Module:
    """Modules on the meta device with parameters of these names; weights are of linear layers."""
    root = nn.Module()
    for name, tensor in parameters.items():
        path, _, leaf = name.rpartition(".")
        owner = root
        for part in path.split("."):
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(leaf, nn.Parameter(tensor.to("meta", torch.float32), False))
    for path, module in list(root.named_modules()):
        if module._parameters.keys() and getattr(module, "weight", torch.zeros(1)).ndim == 2:
            bias = "bias" in module._parameters
            n, k = module.weight.shape  # pyright: ignore
            parent, _, leaf = path.rpartition(".")
            linear = nn.Linear(k, n, bias, device="meta")  # pyright: ignore
            setattr(root.get_submodule(parent), leaf, linear)
    return root


@pytest.mark.parametrize("make", CASES)
def test_a_layer_computes_with_the_weight_that_is_stored(
    make: Callable[[], Sample], tmp_path: Path
) -> None:
    sample = make()
    checkpoint = sample.open(tmp_path)
    model = module_of(sample.parameters)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "inputs that the checkpoint quantizes")
        warnings.filterwarnings("ignore", "every layer was kept")
        compiled = gqc.load(tmp_path, model, target="cpu")
    rows = {row.layer: row for row in compiled.report().rows}
    for path, layer in compiled.named_modules():
        if path not in rows or rows[path].activation:
            continue
        weight = dense(checkpoint.read(f"{path}.weight"), torch.float64)
        x = torch.randn(3, weight.shape[1], generator=generator(3))
        expected = x.double() @ weight.T
        if f"{path}.bias" in sample.parameters:
            expected += sample.parameters[f"{path}.bias"].double()
        bound = x.double().abs() @ weight.abs().T * 2.0**-14
        assert ((layer(x).double() - expected).abs() <= bound).all(), path


@pytest.mark.parametrize("variant", SAMPLES["fp8"])
def test_fp8_runs_as_it_is_stored(variant: str, tmp_path: Path) -> None:
    sample = SAMPLES["fp8"][variant]()
    sample.open(tmp_path)
    with pytest.warns(UserWarning, match="inputs that the checkpoint quantizes to FP8 are left"):
        compiled = gqc.load(tmp_path, module_of(sample.parameters), target="cpu")
    (row,) = compiled.report().rows
    assert row.decision == "emulated" and row.kernels and row.bits < 9.1
    assert "decoded in registers" in row.reason


def test_quantized_weights_are_not_quantized_again(tmp_path: Path) -> None:
    checkpoint = SAMPLES["gptq"]["4bit_v2"]().open(tmp_path)
    compiled = gqc.load(tmp_path, module_of(SAMPLES["gptq"]["4bit_v2"]().parameters), target="cpu")
    (row,) = compiled.report().rows
    assert (row.method, row.sqnr, row.decision) == ("gptq", None, "emulated")
    stored = codes_of(checkpoint.read(f"{LAYER}.weight"))
    assert isinstance(stored, BlockScaled) and row.format == stored.type.text
    layer = compiled.get_submodule(LAYER)
    assert torch.equal(layer.weight, stored.dequantize(torch.float32))
    assert f'gq.weight @{LAYER}.weight {{origin = "gptq"}}' in compiled.ir("grouped")


def llama(folder: Path) -> PreTrainedModel:
    """A small llama, saved as Hugging Face does."""
    torch.manual_seed(0)
    model = small_models.llama(tie_word_embeddings=True)
    model.save_pretrained(folder)
    return model


def test_a_dense_checkpoint_becomes_the_model_that_its_config_names(tmp_path: Path) -> None:
    model = llama(tmp_path)
    with pytest.warns(UserWarning, match="every layer was kept as it is"):
        loaded = gqc.load(tmp_path, target="cpu")
    assert type(loaded) is type(model)
    assert isinstance(loaded, PreTrainedModel)
    tokens = torch.randint(0, 96, (1, 7))
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    head, embedding = loaded.get_output_embeddings(), loaded.get_input_embeddings()
    assert head is not None and head.weight is embedding.weight
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()


def test_dense_weights_are_quantized_under_a_scheme(tmp_path: Path) -> None:
    model = llama(tmp_path)
    loaded = gqc.load(tmp_path, scheme="int8_g32", target="cpu")
    compiled = gqc.compile(model, scheme="int8_g32", target="cpu")
    tokens = torch.randint(0, 96, (1, 7))
    assert torch.equal(loaded(tokens).logits, compiled(tokens).logits)


def test_the_dtype_of_what_is_dense_can_be_chosen(tmp_path: Path) -> None:
    llama(tmp_path)
    loaded = gqc.load(tmp_path, scheme="int8_g32", dtype=torch.bfloat16, target="cpu")
    assert loaded.model.norm.weight.dtype == torch.bfloat16
    with pytest.raises(GqcError, match="convert it, or give no dtype"):
        gqc.load(tmp_path, nn.Linear(1, 1), dtype=torch.bfloat16)


@pytest.mark.parametrize("change", ["missing", "shape", "unknown"])
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, change: str) -> None:
    tensors = {"weight": torch.ones(4, 32), "bias": torch.zeros(4)}
    if change == "missing":
        del tensors["bias"]
    if change == "shape":
        tensors["weight"] = torch.ones(4, 64)
    if change == "unknown":
        tensors["gain"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    model = nn.Linear(32, 4, device="meta")
    told = {
        "unknown": "gain stored, which Linear does not have in itself",
        "missing": "1 parameter of Linear not stored: bias",
        "shape": r"weight is \[4, 64\], the model has \[4, 32\]",
    }
    with pytest.raises(GqcError, match=told[change]):
        gqc.load(tmp_path, model, scheme="int4_g32", target="cpu")


BLOCK = "model.layers.0"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        (f"{BLOCK}.self_attn.q_proj.bias", 1.0, rf"in {BLOCK}\.self_attn\.q_proj"),
        (f"{BLOCK}.self_attn.q_norm.weight", 1.0, rf"in {BLOCK}\.self_attn"),
        (f"{BLOCK}.mlp.gain", 1.0, rf"in {BLOCK}\.mlp"),
        ("model.norm.bias", 1.0, r"in model\.norm"),
        (f"{BLOCK}.self_attn.q_proj.bias", 0.0, None),
        (f"{BLOCK}.self_attn.rotary_emb.inv_freq", 1.0, None),
        (f"{BLOCK}.self_attn.k_scale", 1.0, None),
        ("model.layers.7.self_attn.q_proj.weight", 1.0, None),
        ("vision_tower.weight", 1.0, None),
        ("model.mtp.norm.weight", 1.0, None),
    ],
)
def test_a_parameter_of_a_layer_that_runs_is_not_left_unread(
    name: str, value: float, told: str | None, tmp_path: Path
) -> None:
    """But for what adds nothing, or is of a layer that does not run."""
    llama(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {name: torch.full((64,), value)}, tmp_path / "model.safetensors")
    if told is None:
        with pytest.warns(UserWarning, match=f"LlamaForCausalLM has no {name}: left unread"):
            gqc.load(tmp_path, scheme="int8_g32", target="cpu")
    else:
        with pytest.raises(GqcError, match=f"{name} stored, which LlamaForCausalLM .*{told}"):
            gqc.load(tmp_path, scheme="int8_g32", target="cpu")


def test_a_config_of_no_known_model_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(4, 32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "colours"}))
    with pytest.raises(GqcError, match="model_type is 'colours', which is not known: give model"):
        gqc.load(tmp_path)


def test_programs_take_no_stored_weights(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(4, 32)}, tmp_path / "model.safetensors")
    model = nn.Linear(32, 4, bias=False)
    program = torch.export.export(model, (torch.ones(1, 32),))
    with pytest.raises(GqcError, match="takes stored weights"):
        gqc.compile(program, weights=open_checkpoint(tmp_path / "model.safetensors"))


LOADING = """
import sys
import torch
import gqc
from peak_memory import peak_memory

layers = int(sys.argv[2])

def stack(n):
    layers = (torch.nn.Linear(2048, 2048, False, device="meta") for _ in range(n))
    return torch.nn.Sequential(*layers).bfloat16()

gqc.load(sys.argv[3], stack(1), target="cpu", progress=False)  # what any load takes
before = peak_memory()
compiled = gqc.load(sys.argv[1], stack(layers), target="cpu", progress=False)
print(peak_memory() - before, sum(b.nbytes for b in compiled.buffers()))
"""


@pytest.mark.slow
def test_loading_holds_what_is_packed_and_a_weight_or_two(tmp_path: Path) -> None:
    """24 weights of 8.4 MB in bfloat16, 2.2 MB packed: 201 MB would be dense."""
    for n in (1, 24):
        weight = torch.randn(2048, 2048, generator=generator(n))
        quantized = rtn(weight, parse_scheme("int4_g128").type(), "minmax")
        gqc.save(Memory({f"{i}.weight": quantized for i in range(n)}), tmp_path / str(n))
    grown, packed = numbers_of(LOADING, tmp_path / "24", "24", tmp_path / "1")
    assert 50e6 < packed < 56e6
    assert grown < packed + 2 * 2048 * 2048 * 4
