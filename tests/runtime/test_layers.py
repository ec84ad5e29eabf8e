"""What stands in the place of a linear layer, to those who treat it as one."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_model, save, save_model
from torch import nn

import gqc
from gqc import GqcError
from gqc.runtime.ops import Launch
from gqc.runtime.weight_handle import QuantizedWeight

Compile = Callable[..., Any]


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the launches whose weights are decoded, as they are."""
    found: list[str] = []
    weight = Launch.weight

    def noted(self: Launch, parts: Any) -> torch.Tensor:
        found.append(self.name)
        return weight(self, parts)

    monkeypatch.setattr(Launch, "weight", noted)
    return found


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the launches that run, as they do."""
    found: list[str] = []
    run = Launch.run

    def noted(self: Launch, *args: Any) -> list[torch.Tensor]:
        found.append(self.name)
        return run(self, *args)

    monkeypatch.setattr(Launch, "run", noted)
    return found


# The weight


def test_a_weight_is_decoded_when_its_values_are_read(compile_model: Compile, decodings) -> None:
    weight = compile_model("layers").up.weight
    assert isinstance(weight, torch.Tensor) and weight.shape == (96, 64) and weight.dim() == 2
    assert weight.dtype == torch.float32 and weight.device.type == "cpu"
    assert weight.is_floating_point() and weight.numel() == 96 * 64
    assert "QuantizedWeight([96, 64]" in repr(weight)
    assert weight.data is weight and isinstance(weight.detach(), QuantizedWeight)
    assert decodings == []
    dense = weight.clone()
    assert type(dense) is torch.Tensor and len(decodings) == 1
    assert torch.equal(weight.t()[3:5] + 0, dense.t()[3:5])
    assert torch.equal(weight.chunk(2)[1] * 1, dense[48:])
    assert torch.equal(weight + 0, dense) and (weight.numpy() == dense.numpy()).all()
    assert torch.equal(copy.deepcopy(weight), dense) and weight.tolist() == dense.tolist()
    x = torch.randn(3, 64)
    torch.testing.assert_close(nn.functional.linear(x, weight), x @ dense.t())


WRITES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda layer: layer.weight.mul_(0),
    "data": lambda layer: layer.weight.data.add_(1),
    "a view of data": lambda layer: layer.weight.data.copy_(torch.zeros(96, 64)),
    "set data": lambda layer: setattr(layer.weight, "data", torch.zeros(96, 64)),
    "an item": lambda layer: layer.weight.__setitem__(0, 1.0),
    "items of data": lambda layer: layer.weight.data.__setitem__((slice(None), 0), 1.0),
    "a view": lambda layer: layer.weight.t()[3:].zero_(),
    "a part": lambda layer: layer.weight.chunk(2)[1].fill_(1.0),
    "out": lambda layer: torch.add(torch.ones(1), 1, out=layer.weight),
    "a tensor": lambda layer: setattr(layer, "weight", torch.zeros(96, 64)),
    "a parameter": lambda layer: setattr(layer, "weight", nn.Parameter(torch.zeros(96, 64))),
    "init": lambda layer: nn.init.zeros_(layer.weight),
    "a gradient": lambda layer: layer.weight.requires_grad_(),
    "set a gradient": lambda layer: setattr(layer.weight, "grad", torch.zeros(96, 64)),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_weight_is_not_written(compile_model: Compile, write: str) -> None:
    model = compile_model("layers")
    with pytest.raises(GqcError, match=r"^up is compiled, .* merge weights before gqc\.compile"):
        WRITES[write](model.up)


MEMORY: dict[str, Callable[[torch.Tensor], Any]] = {
    "safetensors": lambda weight: save({"weight": weight}),
    "an address": lambda weight: weight.data_ptr(),
    "a storage": lambda weight: weight.untyped_storage(),
    "shared memory": lambda weight: weight.share_memory_(),
}


@pytest.mark.parametrize("ask", MEMORY)
def test_a_weight_has_no_memory(compile_model: Compile, ask: str) -> None:
    weight = compile_model("layers").up.weight
    with pytest.raises(GqcError, match=r"has no memory of its own: .*weight\.clone"):
        MEMORY[ask](weight)


def test_arrays_of_a_weight_are_not_written(compile_model: Compile) -> None:
    weight = compile_model("layers").up.weight
    for array in (weight.numpy(), np.asarray(weight)):
        assert not array.flags.writeable
        assert (array == weight.clone().numpy()).all()
    weight.requires_grad_(False)


def test_layers_that_ask_for_a_dtype_decode_nothing(decodings: list[str]) -> None:
    """T5's feed-forward does so in every call, in a graph too."""
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    compiled = gqc.compile(model, scheme="int8_g32")
    ids = torch.arange(10).unsqueeze(0)
    with torch.no_grad():
        y = compiled(input_ids=ids, decoder_input_ids=ids).logits
        traced: Any = torch.compile(compiled, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(traced(input_ids=ids, decoder_input_ids=ids).logits, y)
    assert decodings == []


@pytest.mark.parametrize("mode", ["eager", "aot_eager"])
def test_an_encoder_runs_compiled_layers(launches: list[str], decodings: list[str], mode) -> None:
    """Torch's encoder has a path in one call of its own, which reads dense weights."""
    torch._dynamo.reset()
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.TransformerEncoder(layer, 2).eval()
    compiled = gqc.compile(model, scheme="int8_g32")
    x = torch.randn(1, 5, 32)
    run: Any = compiled if mode == "eager" else torch.compile(compiled, backend=mode)
    with torch.no_grad():
        assert torch.allclose(run(x), model(x), atol=0.05)
    for shape in ("_64x32_", "_32x64_"):
        assert len([name for name in launches if shape in name]) == 2
    assert decodings == []


# Hooks


def double(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (args[0] * 2,)


def add(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output + 100


def renamed(module: nn.Module, state: dict, prefix: str, metadata: Any) -> None:
    state[f"{prefix}seen"] = torch.ones(())


@pytest.mark.parametrize("mode", ["whole", "layers"])
def test_copies_and_files_keep_hooks(compile_model: Compile, mode: str, x: torch.Tensor) -> None:
    model = compile_model(mode)
    plain = model(x)
    hooked = model if mode == "whole" else model.up
    hooked.register_forward_pre_hook(double)
    hooked.register_forward_hook(add)
    hooked.register_state_dict_post_hook(renamed)
    assert not torch.allclose(model(x), plain)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for new in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(new(x), model(x))
        assert new.state_dict().keys() == model.state_dict().keys()
        assert any(key.endswith("seen") for key in new.state_dict())


# Dtypes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_layers_follow_a_conversion(compile_model: Compile, dtype, x: torch.Tensor) -> None:
    model = compile_model("layers")
    y, packed = model(x), model.up.weight_scale.dtype
    assert model.float()(x).equal(y)
    model.to(dtype)
    converted = model(x.to(dtype))
    assert converted.dtype == dtype == model.up.weight.dtype
    torch.testing.assert_close(converted.double(), y.double(), rtol=0.02, atol=0.02)
    assert model.up.weight_scale.dtype == packed
    assert copy.deepcopy(model)(x.to(dtype)).equal(converted)
    model.up.to(torch.float32)
    assert model.up(x).equal(compile_model("layers").up(x))


def test_a_captured_model_refuses_a_conversion(compile_model: Compile, x: torch.Tensor) -> None:
    model = compile_model("whole")
    y = model(x)
    with pytest.raises(GqcError, match=r"compiled for torch\.float32 and cannot become torch\.flo"):
        model.half()
    assert torch.equal(model.float()(x), y)


@pytest.mark.parametrize("scheme", ["int4_g32", "w4a8_g32", "nvfp4"])
@pytest.mark.parametrize("mode", ["whole", "layers"])
def test_autocast_gives_its_dtype(build: Compile, scheme: str, mode: str, x: torch.Tensor) -> None:
    model = build()
    compiled = gqc.compile(model, x if mode == "whole" else None, scheme=scheme)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = compiled(x)
        assert y.dtype == model(x).dtype == torch.bfloat16
    assert torch.cosine_similarity(y.float().flatten(), compiled(x).flatten(), 0) > 0.995
    assert compiled(x).dtype == torch.float32


# Saving


def llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config).eval()


def test_save_pretrained_names_what_saves(tmp_path) -> None:
    compiled = gqc.compile(llama(), scheme="int8_g32")
    for each in (compiled, compiled.model, copy.deepcopy(compiled)):
        with pytest.raises(GqcError, match=r"gqc\.save\(quantized, folder\)"):
            each.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("strict", [True, False])
def test_a_dense_model_does_not_take_packed_weights(
    strict: bool, compile_model: Compile, build: Compile, tmp_path
) -> None:
    """However it is loaded, and the other way round; compiled models take each other's state."""
    compiled, dense = compile_model("layers"), build()
    with pytest.raises(RuntimeError, match=r"size mismatch for up\.weight"):
        dense.load_state_dict(compiled.state_dict(), strict=strict)
    with pytest.raises(RuntimeError, match=r"up\.weight is packed, and no dense weight can be"):
        compiled.load_state_dict(dense.state_dict(), strict=strict)
    compiled.load_state_dict(compiled.state_dict(), strict=strict)
    save_model(compiled, tmp_path / "model.safetensors")
    load_model(compiled, tmp_path / "model.safetensors", strict=strict)
    with pytest.raises(RuntimeError, match=r"size mismatch for up\.weight"):
        load_model(dense, tmp_path / "model.safetensors", strict=strict)
    with pytest.raises(RuntimeError, match=r'Missing key.*"up\.weight"'):
        dense.load_state_dict(compile_model("whole").state_dict())


def test_from_pretrained_does_not_take_packed_weights(tmp_path: Path) -> None:
    model = llama()
    model.config.save_pretrained(tmp_path)
    save_model(
        gqc.compile(model, scheme="int8_g32"), str(tmp_path / "model.safetensors"), {"format": "pt"}
    )
    with pytest.raises(Exception, match=r"mismatch"):
        type(model).from_pretrained(tmp_path)


def test_adapters_train_on_compiled_layers_and_are_saved(tmp_path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    model = llama()
    ids = torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(0))
    adapted = get_peft_model(
        gqc.compile(model, scheme="int8_g32"), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    )
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.SGD(trained, lr=1.0), []
    for _ in range(4):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 1e-3
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(gqc.compile(model, scheme="int8_g32"), tmp_path)
    with torch.no_grad():
        y = adapted(input_ids=ids).logits
        assert torch.equal(again.eval()(input_ids=ids).logits, y)
        for merge in (adapted.merge_adapter, adapted.merge_and_unload):
            with pytest.raises(
                GqcError, match="an adapter apart from the compiled layer, unmerged"
            ):
                merge()


@pytest.mark.parametrize("mode", ["whole", "layers"])
def test_files_keep_what_was_added(compile_model: Compile, mode: str, x: torch.Tensor) -> None:
    """An adapter that a layer holds, its buffers, and whether it is in training."""
    model = compile_model(mode)
    layer = model if mode == "whole" else model.up
    layer.adapter = nn.Linear(3, 2)
    layer.register_buffer("seen", torch.ones(2))
    layer.train().requires_grad_(False)
    y = model(x)
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    for new in (torch.load(file, weights_only=False), copy.deepcopy(model)):
        twin = new if mode == "whole" else new.up
        assert twin.training and torch.equal(twin.seen, layer.seen)
        assert torch.equal(twin.adapter.weight, layer.adapter.weight)
        assert not any(parameter.requires_grad for parameter in twin.parameters())
        assert torch.equal(new(x), y)


@pytest.mark.parametrize("mode", ["whole", "layers"])
def test_copies_run_their_own_weights(compile_model: Compile, mode: str, x: torch.Tensor) -> None:
    """What `nn.Module.compile` made is a call of that module alone."""
    model = compile_model(mode)
    layer = model if mode == "whole" else model.up
    layer.compile(backend="eager")
    y, new = model(x), copy.deepcopy(model)
    torch.save(model, io.BytesIO())
    for parameter in (*layer.parameters(), *layer.buffers()):
        if parameter.is_floating_point():
            parameter.data.zero_()
    assert torch.equal(new(x), y) and not torch.equal(model(x), y)
