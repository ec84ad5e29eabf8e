"""A stored weight is what the same weight quantized in place is: the same answer, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from xdsl.dialects.builtin import ModuleOp

from gqc.dialects.interpret import run
from gqc.errors import GqcError
from gqc.formats.rotation import rotate
from gqc.passes.adopt_weights import AdoptWeights, Entry, parse_entry
from gqc.passes.recognize_linears import RecognizeLinears
from gqc.quantizers import rtn
from gqc.schemes import parse_scheme

TYPE = parse_scheme("int4_g32").type()


@pytest.mark.parametrize(
    "entry",
    [
        Entry("fc.weight"),
        Entry("fc.weight", channels="gather=fc.input_order"),
        Entry("fc.weight", channels="scale=fc.input_factor"),
        Entry("fc.weight", channels="rotate=32"),
        Entry("fc.weight", channels="scale=fc.input_factor gather=fc.input_order rotate=32"),
    ],
    ids=["plain", "ordered", "scaled", "rotated", "all"],
)
def test_a_stored_weight_is_read_as_its_entry_says(
    entry: Entry, linear: Callable[..., ModuleOp], weights: Callable[..., dict], apply: Callable
) -> None:
    store = weights(24, 64)
    dense = store.pop("fc.weight")
    quantized = rtn(dense, TYPE, "minmax")
    store["fc.weight"] = quantized
    order = store["fc.input_order"] = torch.randperm(64)
    factor = store["fc.input_factor"] = torch.rand(64) + 0.5
    module = linear(24, 64)
    apply(module, RecognizeLinears())
    apply(module, AdoptWeights((str(replace(entry, type=TYPE.text, origin="rtn")),)))
    x = torch.randn(5, 64)
    seen = x
    for change in entry.channels.split():
        how = change.split("=")[0]
        seen = {"gather": seen[:, order], "scale": seen * factor, "rotate": rotate(seen, 32)}[how]
    (found,) = run(module, store, [x])
    torch.testing.assert_close(found, seen @ quantized.dequantize().T, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "entry",
    [
        Entry(
            "a.weight",
            "1x32 : f16 : si4",
            "gptq",
            channels="gather=a.input_order scale=a.input_factor",
        ),
        Entry("b.weight", kept="dequantized: no kernel scales blocks of 1x8"),
    ],
)
def test_entries_are_read_back_from_their_text(entry: Entry) -> None:
    assert parse_entry(str(entry)) == entry


@pytest.mark.parametrize("text", ["a.weight | colour: red", "a.weight | type"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(GqcError, match="is no entry of a stored weight"):
        parse_entry(text)


def test_an_unknown_type_is_refused(linear: Callable[..., ModuleOp], apply: Callable) -> None:
    with pytest.raises(GqcError, match="'1x32 : f16 : colour' is no block-scaled type"):
        apply(linear(1, 32), AdoptWeights(("a.weight | type: 1x32 : f16 : colour",)))
