"""Where parameters of models are in files that call or stack them otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from checkpoints.sample import generator
from torch import nn

from gqc.checkpoints.checkpoint import open_checkpoint
from gqc.checkpoints.places import Place, Places, Stack
from gqc.checkpoints.weights import Permuted, Transposed, dense
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.frontend.linears import copy_shared
from gqc.quantizers import rtn
from gqc.schemes import parse_scheme


def check(model: nn.Module, folder: Path) -> set[str]:
    """All parameters of a model are found in a folder, and are there; gives the names in files."""
    checkpoint, places = open_checkpoint(folder), Places(model)
    found = {n: at for name in checkpoint.names() for n, at in places.find(name).items()}
    state = model.state_dict()
    assert found.keys() == state.keys()
    for name, place in found.items():
        assert torch.equal(dense(place.of(checkpoint.read(place.name))), state[name]), name
    return set(checkpoint.names())


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        ("mixtral", "model.layers.1.block_sparse_moe.experts.3.w2.weight"),
        ("qwen3_moe", "model.layers.1.mlp.experts.3.down_proj.weight"),
        ("gpt_oss", "model.layers.1.mlp.experts.down_proj"),
    ],
)
def test_files_that_transformers_writes(kind: str, stored: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small_models.experts(kind)
    model.save_pretrained(tmp_path)
    assert stored in check(copy_shared(model), tmp_path)


def test_files_of_the_model_without_its_head(tmp_path: Path) -> None:
    model = small_models.llama(tie_word_embeddings=True)
    model.model.save_pretrained(tmp_path)
    places = Places(model)
    assert places.find("layers.0.mlp.up_proj.weight").keys() == {
        "model.layers.0.mlp.up_proj.weight"
    }
    assert not places.find("layers.9.mlp.up_proj.weight")


def test_a_model_that_is_not_of_transformers_has_its_own_names() -> None:
    places = Places(nn.Sequential(nn.Linear(4, 4)))
    assert places.find("0.weight") == {"0.weight": Place("0.weight")}
    assert not places.find("model.0.weight")


def test_one_layer_of_all_experts_may_be_a_stack() -> None:
    """As in GGUF: gate and up are two stacks."""
    places = Places(copy_shared(small_models.experts("mixtral")))
    found = places.find("model.layers.0.mlp.experts.up_proj")
    assert [*found] == [f"model.layers.0.mlp.experts.{e}.up_proj.weight" for e in range(4)]
    stack = torch.randn(4, 64, 64, generator=generator())
    parts = [place.of(stack) for place in found.values()]
    assert all(torch.equal(part, stack[e]) for e, part in enumerate(parts))  # pyright: ignore


def stack_of(scheme: str, experts: int = 4, n: int = 8) -> BlockScaled:
    """A quantized stack [E, N, 64]."""
    values = torch.randn(experts * n, 64, generator=generator(n))
    made = rtn(values, parse_scheme(scheme).type(), "minmax")
    parts = (made.codes, made.scale, made.zero)
    codes, scale, zero = (None if p is None else p.unflatten(0, (experts, n)) for p in parts)
    assert codes is not None and scale is not None
    return BlockScaled(parse_scheme(scheme).type(3), codes, scale, zero)


@pytest.mark.parametrize("scheme", ["int4_g32", "int8_row"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_part_of_a_quantized_stack(scheme: str, transposed: bool) -> None:
    stack = stack_of(scheme)
    weight = Transposed(stack) if transposed else stack
    place = Place("w", Stack(4, (8, 64), transposed), expert=2, part=1, parts=2)
    part: Any = place.of(weight)
    assert part.type == parse_scheme(scheme).type() or part.type.block_of((4, 64)) == (1, 64)
    assert torch.equal(dense(part), dense(stack)[2, 4:])


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(3, 8, 64), r"w is \[3, 8, 64\], expected \[4, 8, 64\], a stack of 4 experts"),
        (torch.zeros(4, 64, 8), r"w is \[4, 64, 8\], expected \[4, 8, 64\]"),
        (torch.zeros(32, 64), r"w is \[32, 64\], expected \[4, 8, 64\]"),
        (stack_of("int4_g32", experts=5), r"w is \[5, 8, 64\], expected \[4, 8, 64\]"),
        (Permuted(stack_of("int4_g32"), torch.arange(64)), "experts cannot be Permuted"),
    ],
)
def test_what_is_no_stack_of_these_experts(weight: Any, message: str) -> None:
    with pytest.raises(GqcError, match=message):
        Place("w", Stack(4, (8, 64))).of(weight)


def test_a_stack_may_be_turned_where_transformers_turns_it() -> None:
    """By its shape, as Qwen3-VL's; one that is square is not turned."""
    straight = torch.randn(4, 8, 64, generator=generator())
    either = Place("w", Stack(4, (8, 64), either=True), expert=1)
    assert torch.equal(dense(either.of(straight)), straight[1])
    assert torch.equal(dense(either.of(straight.transpose(1, 2))), straight[1])
    square = torch.randn(4, 8, 8, generator=generator())
    either = Place("w", Stack(4, (8, 8), either=True), expert=1)
    assert torch.equal(dense(either.of(square)), square[1])


def test_blocks_that_lie_across_layers() -> None:
    stack = stack_of("int4_g32", n=6)
    wide = BlockScaled(
        stack.type.with_block([1, 2, 32]),
        stack.codes,
        stack.scale[:, ::2],
        None if stack.zero is None else stack.zero[:, ::2],
    )
    place = Place("w", Stack(4, (6, 64)), expert=1, part=1, parts=2)
    with pytest.raises(GqcError, match="has blocks across experts or layers"):
        place.of(wide)
    whole: Any = Place("w", Stack(4, (6, 64)), expert=1).of(wide)
    assert torch.equal(dense(whole), dense(wide)[1])
