"""Experts as linear layers: the same model, on the same storage."""

from __future__ import annotations

from typing import Any

import pytest
import small_models
import torch
from torch import nn
from transformers import NemotronHConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from gqc.frontend.experts import Experts, separate_experts, slots_of
from gqc.frontend.linears import copy_shared, linear_modules
from gqc.frontend.prepare import needs_preparing

TOKENS = torch.randint(0, 96, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=small_models.EXPERTS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return small_models.experts(request.param)


def test_a_model_computes_what_it_did_to_the_bit(model: Any) -> None:
    new: Any = copy_shared(model)
    assert needs_preparing(model)
    assert not needs_preparing(new)
    with torch.no_grad():
        assert torch.equal(new(TOKENS).logits, model(TOKENS).logits)


def test_each_matrix_is_a_linear_layer_on_the_storage_of_the_stack(model: Any) -> None:
    new = copy_shared(model)
    stacks = dict(model.model.layers[0].mlp.experts.named_parameters())
    path = "model.layers.0.mlp.experts"
    layers = {p.removeprefix(path): m for p, m in linear_modules(new).items() if path in p}
    names = {name.rpartition(".")[2] for name in layers}
    assert len(layers) == 4 * len(names)
    assert names in ({"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"})
    storages = {stack.untyped_storage().data_ptr() for stack in stacks.values()}
    parameters = [p for layer in layers.values() for p in layer.parameters()]
    assert {p.untyped_storage().data_ptr() for p in parameters} == storages
    assert sum(p.numel() for p in parameters) == sum(s.numel() for s in stacks.values())


def test_meta_models_have_experts_too(model: Any) -> None:
    model.to("meta")
    separate_experts(model)
    assert "model.layers.1.mlp.experts.3.down_proj.weight" in model.state_dict()


def stacked(kind: str = "mixtral") -> Any:
    """The stacked experts of one layer."""
    torch.manual_seed(0)
    return small_models.experts(kind).model.layers[0].mlp.experts


def separated(experts: nn.Module) -> Experts:
    slots = slots_of(experts)
    assert slots is not None
    return Experts(experts, slots)


def sent(
    rows: int, experts: int, first: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of 64 features, two experts from `first` on for each, and their weights."""
    random = torch.Generator().manual_seed(rows)
    index = torch.rand(rows, experts - first, generator=random).topk(2).indices + first
    return torch.randn(rows, 64, generator=random), index, torch.rand(rows, 2, generator=random)


def test_experts_without_a_gate() -> None:
    sizes: dict[str, Any] = {"hidden_size": 64, "moe_intermediate_size": 32, "n_routed_experts": 4}
    config = NemotronHConfig(**sizes, mlp_hidden_act="relu2", moe_latent_size=None)
    config._experts_implementation = "eager"
    experts = NemotronHExperts(config)
    for parameter in experts.parameters():
        nn.init.normal_(parameter)
    new = separated(experts)
    assert [name for name, _ in new.named_parameters()][:2] == [
        "0.up_proj.weight",
        "0.down_proj.weight",
    ]
    assert torch.equal(new(*sent(5, 4)), experts(*sent(5, 4)))


def test_a_number_beyond_the_experts_sends_nowhere() -> None:
    new = separated(stacked())
    x, index, weight = sent(5, 4)
    elsewhere = index.clone()
    elsewhere[:, 0] = 4
    only = torch.stack([torch.zeros(5), weight[:, 1]], 1)
    assert torch.allclose(new(x, elsewhere, weight), new(x, index, only), atol=1e-7)
    assert not new(x, torch.full_like(index, 4), weight).any()


def test_an_expert_runs_where_rows_are_sent_to_it_alone() -> None:
    new, called = separated(stacked()), []
    for e in range(4):
        layer = new.get_submodule(f"{e}.down_proj")
        layer.register_forward_hook(lambda *_, e=e: called.append(e))
    new(*sent(5, 4, first=2))
    assert called == [2, 3]


@pytest.mark.parametrize("kind", small_models.EXPERTS)
def test_a_graph_of_them_takes_any_rows(kind: str) -> None:
    new = separated(stacked(kind)).eval()
    dynamic = torch.export.Dim.AUTO
    shapes = ({0: dynamic}, {0: dynamic}, {0: dynamic})
    program = torch.export.export(new, sent(5, 4), dynamic_shapes=shapes, strict=False)
    for rows in (1, 2, 9):
        inputs = sent(rows, 4, first=2)  # none for the experts 0 and 1
        assert torch.allclose(program.module()(*inputs), new(*inputs), atol=1e-6)


class WithNorm(MixtralExperts):
    """Experts with one more parameter, which is not known."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.norm = nn.RMSNorm(64)


class Doubled(MixtralExperts):
    """Experts that do something else with the same parameters."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return 2 * super().forward(*args, **kwargs)


def test_experts_that_do_or_hold_more_are_left() -> None:
    config = stacked().config
    for other in (nn.Linear(4, 4), WithNorm(config), Doubled(config)):
        assert slots_of(other) is None
    changes = {
        "a hook": lambda e: e.register_forward_hook(lambda *_: None),
        "a hook before": lambda e: e.register_forward_pre_hook(lambda *_: None),
        "another forward": lambda e: setattr(e, "forward", lambda *_: None),
        "a norm without weight": lambda e: setattr(e, "has_post_expert_norm", True),
        "a buffer": lambda e: e.register_buffer("scale", torch.ones(4)),
        "a matrix for a stack": lambda e: setattr(e, "down_proj", nn.Parameter(torch.ones(4, 4))),
    }
    for name, change in changes.items():
        experts = stacked()
        assert slots_of(experts) is not None
        change(experts)
        assert slots_of(experts) is None, name


def test_experts_that_two_layers_share_are_one_module() -> None:
    model = small_models.experts("mixtral")
    model.model.layers[1].mlp.experts = model.model.layers[0].mlp.experts
    new: Any = copy_shared(model)
    assert new.model.layers[1].mlp.experts is new.model.layers[0].mlp.experts


def test_rows_are_summed_in_float32() -> None:
    """As transformers' own faster ways do; in bf16 each expert's share would be rounded."""
    new = separated(stacked()).bfloat16()
    x, index, weight = sent(64, 4)
    index = torch.arange(4).expand(64, 4)
    weight = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    found = new(x.bfloat16(), index, weight)
    parts = [new(x.bfloat16(), index[:, [e]], torch.ones(64, 1)).double() for e in range(4)]
    exact = sum(part * weight[:, [e]].double() for e, part in enumerate(parts))
    assert torch.equal(found, torch.as_tensor(exact).float().bfloat16())
