"""Small models, and what a compiled one must compute: the model with dequantized weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import pytest
import small_models
import torch
import transformers
from torch import nn
from torch.utils import _pytree as pytree
from transformers.pytorch_utils import Conv1D

import gqc
from gqc.quantizers import QUANTIZERS
from gqc.schemes import parse_scheme


@pytest.fixture(autouse=True)
def own_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Compiled kernels of these tests stay out of the user's cache."""
    monkeypatch.setenv("GQC_CACHE", str(tmp_path_factory.getbasetemp() / "gqc"))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(64, 128), nn.LayerNorm(128), nn.Linear(128, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.norm(self.up(x))))


def llama() -> nn.Module:
    return small_models.llama().train()


def gpt2() -> nn.Module:
    return small_models.gpt2(n_inner=128, n_layer=1).train()


def bert() -> nn.Module:
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=96,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=64,
        )
    )


def text(batch: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch * 100 + length)
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, length // 2 + 1 :] = 0
    ids = torch.randint(3, 96, (batch, length), generator=generator)
    return {"input_ids": ids, "attention_mask": mask}


def vectors(*shape: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(shape[0])
    return {"x": torch.randn(*shape, 64, generator=generator)}


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "mlp": MLP,
    "llama": llama,
    "gpt2": gpt2,
    "bert": bert,
}
INPUTS: dict[str, list[dict[str, torch.Tensor]]] = {
    "mlp": [vectors(3), vectors(1), vectors(2), vectors(9)],
    **{name: [text(2, 8), text(1, 5), text(3, 13)] for name in ("llama", "gpt2", "bert")},
}


@cache
def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = BUILDERS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # a zero bias, a norm of ones would hide that they are lost
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def build() -> Callable[[str], nn.Module]:
    """A fresh copy of a model by name, in evaluation mode, with the same random weights always."""
    return lambda name: copy.deepcopy(built(name))


@cache
def compiled_once(name: str, mode: str, scheme: str) -> tuple[nn.Module, Any]:
    model = copy.deepcopy(built(name))
    return model, gqc.compile(
        model, ((), INPUTS[name][0]) if mode == "whole" else None, scheme=scheme
    )


@pytest.fixture
def compiled() -> Callable[..., tuple[nn.Module, Any]]:
    """A model by name and it compiled, `whole` or its `layers` alone, to be left as they are."""
    return lambda name, mode, scheme="int4_g32": compiled_once(name, mode, scheme)


@pytest.fixture
def inputs() -> dict[str, list[dict[str, torch.Tensor]]]:
    """Keyword inputs of each model: an example, then others of other batch and sequence sizes."""
    return INPUTS


def linears(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of a model by path, its output head left out."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not path.endswith("lm_head")
    }


def dequantized(
    model: nn.Module, schemes: Mapping[str, str], dtype: torch.dtype = torch.float64
) -> nn.Module:
    """A copy in `dtype` whose layers `{path: scheme}` have the weights that the codes stand for."""
    new = copy.deepcopy(model).to(dtype)
    for path, name in schemes.items():
        source: Any = model.get_submodule(path)
        scheme = parse_scheme(name)
        weight = source.weight.T if isinstance(source, Conv1D) else source.weight
        quantized = QUANTIZERS[scheme.quantizer](weight, scheme.type(), scheme.scale_rule)
        exact = quantized.dequantize(torch.float64)
        exact = exact.T if isinstance(source, Conv1D) else exact
        # Not in place: a weight that is tied stays what it is elsewhere.
        new.get_submodule(path).weight = nn.Parameter(exact.to(dtype), requires_grad=False)
    return new


def output(
    model: nn.Module, inputs: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    """The first output of a model, of inputs in `dtype`, as float64."""
    given = {k: x.to(dtype) if x.is_floating_point() else x for k, x in inputs.items()}
    with torch.no_grad():
        return pytree.tree_leaves(model(**given))[0].double()


Check = Callable[..., None]


@pytest.fixture
def check() -> Check:
    """Assert that a compiled model computes what the model with dequantized weights does.

    The yardstick is the latter in float64; the compiled model may be off by `factor` times what
    torch itself is off by in the model's dtype, in Euclidean norm.
    """

    def check(
        compiled: nn.Module,
        model: nn.Module,
        schemes: Mapping[str, str],
        cases: list[dict[str, torch.Tensor]],
        factor: float = 8.0,
    ) -> None:
        dtype = next(model.parameters()).dtype
        exact, rounded = (dequantized(model, schemes, d) for d in (torch.float64, dtype))
        for case in cases:
            truth = output(exact, case, torch.float64)
            y = output(compiled, case, dtype)
            assert y.shape == truth.shape
            allowed = factor * (output(rounded, case, dtype) - truth).norm()
            error = (y - truth).norm()
            assert error <= allowed, f"{error:.3g} is more than {allowed:.3g} of {truth.norm():.3g}"

    return check


@pytest.fixture
def all_linears() -> Callable[[nn.Module, str], dict[str, str]]:
    """`{path: scheme}` of every linear layer but the output head."""
    return lambda model, scheme: dict.fromkeys(linears(model), scheme)
