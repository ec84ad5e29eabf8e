"""gqc.generator: the tokens of the model itself, whatever is read at once."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import small_models
import torch

import gqc
from gqc.runtime import attention
from gqc.runtime.ops import Launch

PROMPT = [5, 17, 80, 3, 41, 9, 60]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return small_models.llama().requires_grad_(False)


@pytest.fixture(scope="module")
def expected(model: Any) -> Any:
    """The same model, its layers compiled one by one."""
    return gqc.compile(model, scheme="int8_g32", target="cpu")


@pytest.fixture(scope="module")
def generator(model: Any) -> Any:
    return gqc.generator(model, length=32, inductor=False, scheme="int8_g32", target="cpu")


@pytest.mark.parametrize("parts", [(7,), (1, 6), (1, 1, 1, 4), (3, 1, 3), (1,) * 7], ids=str)
def test_logits_are_those_of_the_model(generator: Any, expected: Any, parts: tuple[int, ...]):
    generator.reset()
    ends = list(itertools.accumulate(parts))
    for first, end in zip([0, *ends], ends, strict=False):
        logits = generator.read(PROMPT[first:end])
        whole = expected(torch.tensor([PROMPT[:end]])).logits[0, -1]
        assert logits.shape == (96,)
        assert torch.allclose(logits, whole, atol=1e-5, rtol=0)


def test_generated_tokens_are_those_of_transformers(generator: Any, expected: Any) -> None:
    ids = torch.tensor([PROMPT])
    whole = expected.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20)
    generator.reset()
    found = list(generator.generate(PROMPT, 20))
    assert found == whole[0, len(PROMPT) :].tolist()
    assert found[-1] == 2 or len(found) == 20


def test_a_text_that_is_reset_leaves_nothing(generator: Any) -> None:
    generator.reset()
    first = generator.read(PROMPT)
    generator.read([1, 2, 3])
    generator.reset()
    assert torch.equal(generator.read(PROMPT), first)


def test_layers_are_merged(generator: Any) -> None:
    kernels = {kernel.name.rsplit("_", 1)[0] for kernel in generator.graph.kernels}
    assert {name.partition("rescale_f16_")[2] for name in kernels} == {
        "128x64",  # q, k, v
        "64x64_add",
        "256x64_silu_mul",
        "64x128_add",
    }


def test_a_stop_token_ends_a_text(generator: Any) -> None:
    generator.reset()
    assert list(generator.generate(PROMPT, 9, choose=lambda logits: 2)) == [2]


def test_with_inductor(model: Any, generator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled step launches kernels itself, and calls no operator for it."""
    compiled = gqc.generator(model, length=32, scheme="int8_g32", target="cpu")
    generator.reset()
    expected = [generator.read(tokens) for tokens in (PROMPT, [7], [8], [9], [10])]
    found = [compiled.read(tokens) for tokens in (PROMPT, [7], [8])]
    monkeypatch.delattr(Launch, "run")
    monkeypatch.delattr(attention, "attend_fake")
    found += [compiled.read(tokens) for tokens in ([9], [10])]
    for logits, whole in zip(found, expected, strict=True):
        assert torch.allclose(logits, whole, atol=1e-5, rtol=0)


def test_inductor_elsewhere_calls_operators(model: Any) -> None:
    """What it generates is kept on the disk, for processes without gqc's backend."""
    import torch._inductor.lowering as lowering

    from gqc.runtime import inductor

    operator = torch.ops.gqc.matmul.default
    before = lowering.lowerings.get(operator)  # torch.compile may have noted that it is called
    with inductor.direct_launches():
        assert lowering.lowerings[operator] is inductor.lower_matmul
    assert lowering.lowerings.get(operator) is before is not inductor.lower_matmul


def test_what_does_not_fit(generator: Any) -> None:
    generator.reset()
    generator.read(PROMPT)
    for tokens in ([], [1] * 26):
        with pytest.raises(gqc.GqcError, match=rf"{len(tokens)} tokens after 7 do not fit into 32"):
            generator.read(tokens)
    generator.read([1] * 25)


def test_models_that_are_refused() -> None:
    with pytest.raises(gqc.GqcError, match="Linear is no causal language model"):
        gqc.generator(torch.nn.Linear(4, 4), length=8)
    with pytest.raises(gqc.GqcError, match="convert it, or give no dtype"):
        gqc.generator(small_models.llama(), length=8, dtype=torch.bfloat16)
