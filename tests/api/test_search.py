"""`gqc.search`: a scheme map for `gqc.compile` and `gqc.quantize` that keeps to a budget."""

from __future__ import annotations

import copy
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import small_models
import torch
from torch import nn

import gqc
from gqc.checkpoints.weights import dense
from gqc.errors import GqcError
from gqc.mixed_precision import Found
from gqc.mixed_precision.decode_time import rates_of
from gqc.schemes import preset
from gqc.tools.models import minilm, wikitext2
from gqc.tools.similarity import embeddings, mean_cosine, sentence_batch

BITS = ("int2_g32", "int4_g64", "int8_g64")  # 3, 4.5 and 8.5
Build = Callable[[str], nn.Module]


class Uneven(nn.Module):
    """Two branches of two layers each: errors of the larger, soft one hardly show."""

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.soft = (
            nn.Sequential(nn.Linear(64, size), nn.Tanh(), nn.Linear(size, 64))
            for size in (128, 384)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.loud(x) + 0.02 * self.soft(x)


def uneven() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """The model, inputs to calibrate on, and others."""
    torch.manual_seed(0)
    return Uneven().eval(), torch.randn(40, 64), torch.randn(40, 64)


def bits_of(report: Any) -> float:
    """Mean bits of the quantized weights, from the report of a compiled model."""
    rows = {row.weight: row for row in report.rows if row.decision != "kept"}.values()
    elements = sum(math.prod(row.shape) for row in rows)
    return sum(row.bits * math.prod(row.shape) for row in rows) / elements


@pytest.mark.parametrize("budget", [3.0, 4.4, 20.0])
def test_the_map_compiles_to_bits_within_the_budget(build: Build, inputs: Any, budget: float):
    model = build("bert")
    found = gqc.search(model, inputs["bert"][:1], budget_bits=budget, candidates=BITS)
    assert found.bits <= budget
    report = gqc.compile(model, scheme=found).report()
    assert bits_of(report) == pytest.approx(found.bits)
    assert {row.layer for row in report.rows if row.decision != "kept"} == set(found)


def test_the_choice_is_the_best_there_is() -> None:
    model, x, _ = uneven()
    for budget in (3.5, 4.4, 5.5, 7.0):
        found = gqc.search(model, [x], budget_bits=budget, candidates=BITS)
        best = math.inf
        for schemes in itertools.product(BITS, repeat=4):
            layers = [*zip(found.layers, schemes, strict=True)]
            sizes = [math.prod(layer.shape) for layer in found.layers]
            bits = [preset(s).type().bits_per_element(layer.shape) for layer, s in layers]
            bits = sum(map(operator.mul, bits, sizes)) / sum(sizes)
            loss = sum(layer.sensitivities[s] for layer, s in layers)
            best = min(best, loss) if bits <= budget else best
        assert found.sensitivity == pytest.approx(best, rel=1e-12)


def test_mixed_beats_uniform_at_equal_bits() -> None:
    model, x, other = uneven()
    found = gqc.search(model, [x], budget_bits=4.5, candidates=BITS)
    with torch.no_grad():
        exact = model(other)
    mixed, uniform = (
        (gqc.compile(model, scheme=scheme)(other) - exact).norm() for scheme in (found, "int4_g64")
    )
    assert mixed < 0.75 * uniform
    assert {found["soft.0"], found["soft.2"]} == {"int2_g32"}


@pytest.mark.slow
def test_mixed_beats_uniform_on_minilm() -> None:
    """By the cosine to embeddings in fp32, of other sentences than those calibrated on."""
    model, tokenizer = minilm()
    batch = {k: x[:, :24] for k, x in sentence_batch(tokenizer, wikitext2(), 28).items()}
    scored, given = ({k: x[rows] for k, x in batch.items()} for rows in (slice(24), slice(24, 28)))
    exact = embeddings(model, scored)

    def distance(scheme: Any) -> float:
        source, changed = gqc.quantize(model, scheme=scheme), copy.deepcopy(model)
        changed.load_state_dict({name: dense(source.read(name)) for name in source.names()})
        return 1 - mean_cosine(embeddings(changed, scored), exact)

    candidates = ("int3_g64", "int4_g128", "int8_g128")
    found = gqc.search(model, [given], budget_bits=4.25, candidates=candidates)
    assert found.bits <= 4.25
    assert distance(found) < 0.9 * distance("int4_g128")


def test_a_budget_of_time() -> None:
    """On a GPU of the table; the times by hand."""
    model, x, _ = uneven()
    rates = rates_of("sm_90")
    shapes = ((128, 64), (64, 128), (384, 64), (64, 384))
    least, most = (
        sum(rates.microseconds(preset(s).type(), shape) for shape in shapes)
        for s in (BITS[0], BITS[-1])
    )
    budget = (least + most) / 2
    found = gqc.search(model, [x], budget_us=budget, candidates=BITS, target="sm_90")
    assert least < found.microseconds <= budget
    assert found["loud.0"] == "int8_g64"
    with pytest.raises(GqcError, match=r"µs a token: the least that .* allow is 0\.0[0-9]+;"):
        gqc.search(model, [x], budget_us=least * 0.99, candidates=BITS, target="sm_90")


def test_the_map_quantizes_with_a_quantizer_added() -> None:
    model, x, _ = uneven()
    found = gqc.search(model, [x], budget_bits=4.5, candidates=BITS)
    scheme = {layer: f"{name}+gptq" for layer, name in found.items()}
    quantized = gqc.quantize(model, scheme=scheme, calibration=[x])
    assert {fact.layer for fact in quantized.facts if fact.scheme} == set(found)


def test_candidates_that_do_not_fit_are_skipped_and_said() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 8))
    found = gqc.search(
        model, [torch.randn(9, 64)], budget_bits=9, candidates=("int8_g64", "int4_g32")
    )
    assert found == {"0": "int8_g64", "2": "int4_g32"}
    assert [layer.reason for layer in found.layers] == [
        "",
        "int8_g64 does not fit: 64 does not divide K",
    ]


def test_no_candidate_fits() -> None:
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64), nn.Linear(64, 80), nn.Linear(80, 8))
    with pytest.raises(GqcError, match=r"(?s)int8_g64\).*1: weight \[64, 96\].*3: weight \[8, 80"):
        gqc.search(model, [torch.randn(9, 64)], budget_bits=9, candidates="int8_g64")


def test_layers_of_one_weight_have_one_scheme() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    model[2].weight = model[0].weight
    found = gqc.search(model, [torch.randn(9, 64)], budget_bits=6.5, candidates=BITS)
    assert found["0"] == found["2"]
    assert len(found.weights) == 2
    assert bits_of(gqc.compile(model, scheme=found).report()) == pytest.approx(found.bits)
    assert found.bits <= 6.5


def test_a_model_that_is_one_layer() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(64, 32), torch.randn(9, 64)
    found = gqc.search(model, [x], budget_bits=5, candidates=BITS)
    assert [*found.values()] == ["int4_g64"]
    by_name = gqc.compile(model, scheme=found)(x)
    assert torch.equal(by_name, gqc.compile(model, scheme="int4_g64")(x))
    quantized = gqc.quantize(model, scheme=found)
    assert torch.equal(by_name, gqc.compile(model, weights=quantized)(x))


def test_what_is_kept_is_not_in_the_map(build: Build, inputs: Any) -> None:
    model = build("llama")
    given = inputs["llama"][:1]
    found = gqc.search(model, given, budget_bits=5, candidates=BITS, ignore="*.layers.0.*")
    assert set(found) == {n for n, m in model.named_modules() if ".layers.1." in n and is_linear(m)}
    kept = {layer.layer: layer.reason for layer in found.layers if not layer.scheme}
    assert kept["lm_head"] == "the output head is kept by default"


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def test_a_head_tied_to_the_embedding() -> None:
    torch.manual_seed(0)
    model = small_models.llama(num_hidden_layers=1, tie_word_embeddings=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.arange(8)[None]
    found = gqc.search(model, [ids], budget_bits=5, candidates=BITS, lm_head=True)
    assert "lm_head" in found
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    gqc.compile(model, scheme=found)(ids)


def test_one_seed_one_result() -> None:
    candidates = ("int2_g32+gptq", "int4_g32+scale_search", "nvfp4_static")

    def run() -> Found:
        model, x, _ = uneven()
        return gqc.search(model, [x, 2 * x], budget_bits=4.25, candidates=candidates, seed=3)

    first, second = run(), run()
    assert first == second
    assert [each.sensitivities for each in first.layers] == [
        each.sensitivities for each in second.layers
    ]


def test_it_prints_what_was_chosen() -> None:
    model, x, _ = uneven()
    found = gqc.search(
        model, [x], budget_bits=4.5, candidates=BITS, target="sm_90", ignore="loud.0"
    )
    text = str(found)
    assert f"{found.bits:.4f} bits/weight" in text
    assert "data sheet of H100 SXM" in text
    assert "ignored by pattern loud.0" in text
    assert "soft.2" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one budget"),
        ({"budget_bits": 4, "budget_us": 1}, "give one budget"),
        ({"budget_bits": math.nan}, "a budget of nan"),
        ({"budget_us": -1.0}, "a budget of -1.0"),
        (
            {"budget_bits": 2.9},
            r"2.9 bits a weight: the least that the candidates allow is 3.0000;",
        ),
        ({"budget_bits": 4, "candidates": ()}, "no candidates"),
        ({"budget_bits": 4, "candidates": ("int4_g64", "keep")}, "keep is no candidate"),
        ({"budget_bits": 4, "candidates": ("int4_g64", "int9_g64")}, "unknown scheme 'int9_g64'"),
        ({"budget_bits": 4, "candidates": ("int4_g64+awq",)}, "awq changes other layers too"),
        ({"budget_bits": 4, "ignore": "*"}, "every layer is kept: ignored by pattern *"),
        ({"budget_bits": 4, "ignore": "nothing"}, "no linear layer matches 'nothing'"),
        ({"budget_bits": 4, "target": "sm_1"}, "unknown target 'sm_1'"),
        ({"budget_bits": 4, "calibration": []}, "the calibration inputs are none"),
        ({"budget_bits": 4, "calibration": [torch.full((3, 64), torch.nan)]}, "hold inf or NaN"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    model, x, _ = uneven()
    options = {"candidates": BITS, "calibration": [x], **options}
    with pytest.raises(GqcError, match=message):
        gqc.search(model, options.pop("calibration"), **options)


def test_models_that_cannot_be_searched() -> None:
    model, x, _ = uneven()
    graph: Any = torch.fx.symbolic_trace(model)
    with pytest.raises(GqcError, match=r"give the nn\.Module itself"):
        gqc.search(graph, [x], budget_bits=4)
    with pytest.raises(GqcError, match="weights are on the meta device"):
        gqc.search(model.to("meta"), [x], budget_bits=4)
