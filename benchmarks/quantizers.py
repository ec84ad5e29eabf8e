"""Accuracy of quantizers: gqc's beside torchao's, hqq's and compressed-tensors' at the same bits.

Each quantizes the same layers of a trained model (all linears but the output head), and is scored
on the same text: what it makes of the weights, and of inputs where a scheme quantizes these too, is
put into the torch model in float32, so that only numbers tell the quantizers apart and no kernel
does. Scores are losses: the less, the better.

- `minilm`: 1 − the mean cosine of sentence embeddings to those of float32, WikiText-2.
- `stories15m`: perplexity on text that the float32 model sampled from itself (temperature 1): how
  far it rises estimates the divergence from that model; it is no text by people.
- `smollm2`: perplexity on WikiText-2; its weights lie on an int4 grid in blocks of 32, so schemes
  of 4 bits quantize what was quantized before. It tells one library from another, not one format
  from another.

Where a scheme's groups do not divide a layer's columns (128 of stories15m's 288 and smollm2's 576,
64 of the former), they are of 32 for every quantizer.

Writes what it has after every row; `--resume` keeps the rows it finds.

    python benchmarks/quantizers.py --models minilm --rows "W4 g64" nvfp4
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import quantizer_peers as peers
import torch
from machine import describe_machine
from quantizer_peers import Peer, Rounding
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import gqc
from gqc.checkpoints.weights import dense
from gqc.quantization.part import input_quantizer
from gqc.schemes import parse_scheme
from gqc.tools import models
from gqc.tools.perplexity import perplexity, token_windows
from gqc.tools.similarity import embeddings, mean_cosine, sentence_batch

RESULTS = Path(__file__).parent / "results" / "quantizers.json"
HEAD = "lm_head"
SENTENCES = 256
LOOKED_AT = 64
"""The first sentences, which were scored while quantizers were built: left out."""
CONTEXT = 1024  # of SmolLM2

# Rows


@dataclass(frozen=True)
class Row:
    """One algorithm at one format: `ours` a scheme, {g} in it the group, `theirs` by library."""

    format: str
    algorithm: str
    ours: str
    theirs: dict[str, Peer | None]
    group: int
    calibrated: bool = False

    @property
    def name(self) -> str:
        return f"{self.format} {self.algorithm}"


CALIBRATED = ("awq", "gptq", "awq+gptq", "hadamard+gptq")
INTEGERS = [(4, 128), (4, 64), (3, 64), (2, 32)]


def integer_rows() -> Iterator[Row]:
    """Where the arithmetic is the same, scales and zero points are float32, as the others hold them
    for a float32 model; elsewhere gqc's are float16."""
    for bits, group in INTEGERS:
        whole = f"ui{bits} g{{g}} scale=f32 zero=ui{bits} zero_mode=quantized scale_rule=minmax"
        real = f"ui{bits} g{{g}} scale=f32 zero=f32 zero_mode=rescale scale_rule=minmax"
        symmetric = f"si{bits} g{{g}} scale=f32"
        rows: list[tuple[str, str, dict[str, Peer | None]]] = [
            (
                "rtn, integer zero points",
                f"{whole} quantizer=rtn",
                {
                    "torchao": peers.torchao_rtn(bits, "ASYMMETRIC"),
                    "compressed-tensors": peers.compressed_integers(bits, symmetric=False),
                },
            ),
            (
                "rtn, symmetric, clipping",
                f"{symmetric} quantizer=rtn scale_rule=half",
                {
                    "torchao": peers.torchao_rtn(bits, "SYMMETRIC"),
                    "compressed-tensors": peers.compressed_integers(bits, symmetric=True),
                },
            ),
            (
                "rtn, symmetric",
                f"{symmetric} quantizer=rtn scale_rule=no_clip",
                {"torchao": peers.torchao_rtn(bits, "SYMMETRIC_NO_CLIPPING_ERR")},
            ),
            (
                "rtn, float zero points",
                f"{real} quantizer=rtn",
                {"hqq": peers.hqq(bits, optimize=False)},
            ),
            (
                "hqq, float32",
                f"{real} quantizer=hqq",
                {"torchao": peers.torchao_hqq(bits), "hqq": peers.hqq(bits)},
            ),
            (
                "hqq",
                f"int{bits}_g{{g}}+hqq",
                {"torchao": peers.torchao_hqq(bits), "hqq": peers.hqq(bits)},
            ),
            (
                "search, symmetric",
                f"int{bits}_g{{g}}_sym+scale_search",
                {"torchao": peers.torchao_hqq_scale_only(bits)},
            ),
            ("search, float zero points", f"int{bits}_g{{g}}+scale_search", {}),
            ("awq", f"int{bits}_g{{g}}+awq", {"torchao": peers.torchao_awq(bits)}),
            ("gptq", f"int{bits}_g{{g}}+gptq", {}),
            ("awq+gptq", f"int{bits}_g{{g}}+awq+gptq", {}),
        ]
        for algorithm, ours, theirs in rows:
            calibrated = algorithm in CALIBRATED
            yield Row(f"W{bits} g{group}", algorithm, ours, theirs, group, calibrated)


def a8_rows() -> Iterator[Row]:
    """torchao has no groups of inputs, and none of 8-bit weights: its inputs have a scale a token,
    its 8-bit weights one a row. Besides, its factors are put before gqc's rounding in groups. Its
    4-bit weights clip, which gqc's presets do not: without factors, both do."""
    inputs = "activation=si8,g{g},scale=f32,quantizer=microscaling,scale_rule=amax"
    for bits, group in [(8, 128), (8, 32), (4, 128), (4, 32)]:
        name, theirs = f"w{bits}a8_g{{g}}", peers.torchao_a8(bits)
        in_groups = peers.smoothed(peers.gqc_a8(bits))
        rows: list[tuple[str, str, dict[str, Peer | None]]] = [
            ("rtn; torchao by tokens", name, {"torchao": theirs})
            if bits == 8
            else (
                "rtn, clipping; torchao by tokens",
                f"si{bits} g{{g}} quantizer=rtn scale_rule=half {inputs}",
                {"torchao": theirs},
            ),
            (
                "smoothquant; torchao by tokens",
                f"{name}+smoothquant",
                {"torchao": peers.smoothed(theirs)},
            ),
            (
                "smoothquant; torchao's factors in gqc's groups",
                f"{name}+smoothquant",
                {"torchao": in_groups},
            ),
            ("smoothquant+gptq", f"{name}+smoothquant+gptq", {}),
        ]
        for algorithm, ours, libraries in rows:
            calibrated = algorithm.startswith("smoothquant")
            yield Row(f"W{bits}A8 g{group}", algorithm, ours, libraries, group, calibrated)


def float_rows() -> Iterator[Row]:
    for weights_only in (True, False):
        prefix = "w4a16_" if weights_only else ""
        theirs = (lambda peer: peer) if weights_only else peers.with_activations
        for suffix in ("", "_even", "_rceil"):
            name = f"{prefix}mxfp4{suffix}"
            libraries: dict[str, Peer | None] = {"torchao": theirs(peers.torchao_floats(name))}
            if suffix == "_even":
                libraries["compressed-tensors"] = theirs(peers.COMPRESSED_MXFP4)
            yield Row(f"{prefix}mxfp4", f"scales {suffix[1:] or 'floor'}", name, libraries, 32)
        yield Row(f"{prefix}mxfp4", "search", f"{prefix}mxfp4+scale_search", {}, 32)
        for how in ("gptq", "hadamard+gptq"):
            yield Row(f"{prefix}mxfp4", how, f"{prefix}mxfp4_even+{how}", {}, 32, True)
        name = f"{prefix}nvfp4"
        libraries = {
            "torchao": theirs(peers.torchao_floats(name)),
            "compressed-tensors": theirs(peers.COMPRESSED_NVFP4),
        }
        yield Row(name, "amax", name, libraries, 16)
        yield Row(name, "search", f"{name}+scale_search", {}, 16)
        yield Row(name, "four over six", f"{name}+four_over_six", {}, 16)
        yield Row(name, "gptq", f"{name}+gptq", {}, 16, True)


ROWS = (*integer_rows(), *a8_rows(), *float_rows())

# Models


@dataclass(frozen=True)
class Subject:
    """A model, and what it is scored by: less is better."""

    model: nn.Module
    text: str
    loss: Callable[[nn.Module], float]
    calibration: list[Any]
    """Inputs of other text than what it is scored on."""


def minilm() -> Subject:
    model, tokenizer = models.minilm()
    text = models.wikitext2()
    batch = sentence_batch(tokenizer, text, LOOKED_AT + SENTENCES)
    batch = {name: tensor[LOOKED_AT:] for name, tensor in batch.items()}
    calibration = [sentence_batch(tokenizer, text[len(text) // 2 :], 64)]
    exact = embeddings(model, batch)
    return Subject(
        model,
        f"1 − cosine to float32, {SENTENCES} sentences of WikiText-2",
        lambda new: 1 - mean_cosine(embeddings(new, batch), exact),
        calibration,
    )


def stories15m(windows: int = 16, calibration: int = 8) -> Subject:
    model = models.stories15m()
    tokens, others = samples(model, windows + calibration).split([windows, calibration])
    text = f"perplexity, {tokens[:, 1:].numel()} tokens sampled from the float32 model"
    return Subject(model, text, lambda new: perplexity(new, tokens), [*others.split(1)])


@torch.no_grad()
def samples(model: Any, windows: int) -> Tensor:
    """Tokens that the model samples at temperature 1 under seed 0, [windows, its positions]."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full((windows, 1), model.config.bos_token_id)
    cache = None
    while tokens.shape[1] < model.config.max_position_embeddings:
        out = model(tokens[:, -1:], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        drawn = torch.multinomial(out.logits[:, -1].softmax(-1), 1, generator=generator)
        tokens = torch.cat([tokens, drawn], 1)
    return tokens


def smollm2(windows: int = 2) -> Subject:
    model, tokenizer = models.smollm2()
    text = models.wikitext2()
    tokens = token_windows(tokenizer, text, windows, CONTEXT)
    others = token_windows(tokenizer, text[len(text) // 2 :], windows, CONTEXT)
    return Subject(
        model,
        f"perplexity, {tokens[:, 1:].numel()} tokens of WikiText-2; weights on an int4 grid",
        lambda new: perplexity(new, tokens),
        [*others.split(1)],
    )


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "minilm": minilm,
    "stories15m": stories15m,
    "smollm2": smollm2,
}

# Quantizing


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that are quantized."""
    modules = model.named_modules()
    return {n: m for n, m in modules if isinstance(m, nn.Linear) and n != HEAD}


def group_of(layer: nn.Linear, group: int) -> int:
    """The group that a layer has: the row's, or 32 where that does not divide its columns."""
    return group if layer.in_features % group == 0 else 32


@torch.no_grad()
def by_peer(subject: Subject, row: Row, peer: Peer) -> nn.Module:
    """A copy of the model as another library quantizes it."""
    new = copy.deepcopy(subject.model)
    seen = inputs_of(subject) if peer.factors else {}
    for name, layer in linears(new).items():
        group, weight = group_of(layer, row.group), layer.weight.data
        factors = torch.ones(layer.in_features)
        if peer.factors is not None:
            factors = peer.factors(weight, seen[name], group)
        layer.weight.data = peer.weight(weight * factors, group) / factors
        if peer.activation is not None:
            quantize_inputs(layer, divided(peer.activation, factors), group)
    return new


def divided(rounding: Rounding, factors: Tensor) -> Rounding:
    """A rounding of inputs whose channels are divided by factors meanwhile."""
    return lambda x, group: rounding(x / factors, group) * factors


def inputs_of(subject: Subject) -> dict[str, Tensor]:
    """Inputs [rows, K] of each layer in calibration."""
    seen: dict[str, list[Tensor]] = {name: [] for name in linears(subject.model)}

    def keep(parts: list[Tensor]) -> Callable[[Any, tuple[Tensor, ...]], None]:
        return lambda _, args: parts.append(args[0].flatten(0, -2))

    layers = linears(subject.model)
    hooks = [layer.register_forward_pre_hook(keep(seen[name])) for name, layer in layers.items()]
    for each in subject.calibration:
        subject.model(**each) if isinstance(each, dict) else subject.model(each)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@torch.no_grad()
def by_gqc(subject: Subject, row: Row) -> nn.Module:
    """A copy of the model as gqc quantizes it."""
    new = copy.deepcopy(subject.model)
    layers = linears(new)
    schemes = {n: row.ours.format(g=group_of(layer, row.group)) for n, layer in layers.items()}
    calibration = subject.calibration if row.calibrated else None
    source = gqc.quantize(subject.model, scheme=schemes, calibration=calibration, progress=False)
    for name, parameter in new.named_parameters():
        parameter.data = dense(source.read(name))
    for name, layer in layers.items():
        weight = f"{name}.weight"
        scheme = source.activation(weight)
        if scheme is not None:
            hook = input_quantizer(scheme, source.read(weight), source.input_scale(weight))
            layer.register_forward_pre_hook(hook, with_kwargs=True)
    return new


def quantize_inputs(layer: nn.Linear, rounding: Rounding, group: int) -> None:
    layer.register_forward_pre_hook(lambda _, args: (rounding(args[0], group),))


def bits_per_weight(model: nn.Module, row: Row) -> float:
    """Codes, scales and zero points, as gqc has them, over all layers."""
    bits = weights = 0.0
    for layer in linears(model).values():
        type_ = parse_scheme(row.ours.format(g=group_of(layer, row.group))).type()
        bits += type_.bits_per_element(tuple(layer.weight.shape)) * layer.weight.numel()
        weights += layer.weight.numel()
    return bits / weights


def measure(subject: Subject, row: Row) -> dict[str, Any]:
    """Losses of one row: gqc's, and each library's that has its like."""
    theirs = {name: peer for name, peer in row.theirs.items() if peer is not None}
    return {
        "format": row.format,
        "algorithm": row.algorithm,
        "scheme": row.ours,
        "bits_per_weight": bits_per_weight(subject.model, row),
        "gqc": subject.loss(by_gqc(subject, row)),
        "theirs": {n: subject.loss(by_peer(subject, row, p)) for n, p in theirs.items()},
    }


# The table

LIBRARIES = ("torchao", "hqq", "compressed-tensors")
TIE = 1e-3
"""Losses that differ by no larger part are called tied."""


def table_of(name: str, document: dict[str, Any]) -> Table:
    """Losses, and whether gqc's is the least of its row."""
    table = Table(title=f"{name}: {document['text']}; float32 {document['float32']:.4f}")
    table.add_column("format")
    table.add_column("algorithm")
    for column in ("bits", "gqc", *LIBRARIES, "gqc ≤"):
        table.add_column(column, justify="right")
    for row in document["rows"]:
        theirs = [row["theirs"].get(library) for library in LIBRARIES]
        known = [loss for loss in theirs if loss is not None]
        verdict = verdict_of(row["gqc"], min(known)) if known else "-"
        losses = ("-" if loss is None else f"{loss:.5g}" for loss in (row["gqc"], *theirs))
        bits = f"{row['bits_per_weight']:.3f}"
        table.add_row(row["format"], row["algorithm"], bits, *losses, verdict)
    return table


def verdict_of(ours: float, theirs: float) -> str:
    """Where both do the same arithmetic, the order of its steps alone moves a loss: a tie."""
    if abs(ours / theirs - 1) <= TIE:
        return "tie"
    return "yes" if ours < theirs else "NO"


def best_of(document: dict[str, Any]) -> Table:
    """The best of gqc's and the best of theirs, by format."""
    table = Table("format", "best of gqc", "by", "best of theirs", "by", "gqc <")
    for format_ in dict.fromkeys(row["format"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["format"] == format_]
        ours = min((row["gqc"], row["algorithm"]) for row in rows)
        theirs = min(
            (loss, f"{library} {row['algorithm']}")
            for row in rows
            for library, loss in row["theirs"].items()
        )
        verdict = "yes" if ours[0] < theirs[0] else "NO"
        table.add_row(format_, f"{ours[0]:.5g}", ours[1], f"{theirs[0]:.5g}", theirs[1], verdict)
    return table


def run(name: str, names: list[str] | None, document: dict[str, Any], save: Callable) -> None:
    """Measure the rows of one model that the document lacks; those of another text are dropped."""
    subject = SUBJECTS[name]()
    rows = document.get("rows", []) if document.get("text") == subject.text else []
    found = {(row["format"], row["algorithm"]): row for row in rows}
    document |= {"text": subject.text, "float32": subject.loss(subject.model), "rows": rows}
    order = [(row.format, row.algorithm) for row in ROWS]
    for key, row in zip(order, ROWS, strict=True):
        wanted = names is None or any(text in row.name for text in names)
        if wanted and key not in found:
            found[key] = measure(subject, row)
            document["rows"] = [found[each] for each in order if each in found]
            save()


def main() -> None:
    parser = argparse.ArgumentParser(description="gqc's quantizers beside other libraries'")
    parser.add_argument("--models", nargs="+", default=list(SUBJECTS), choices=SUBJECTS)
    parser.add_argument("--rows", nargs="+", help="parts of rows' names; all without")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--resume", action="store_true", help="keep the rows in the output file")
    options = parser.parse_args()

    console = Console()
    document: dict[str, Any] = {"machine": describe_machine(), "models": {}}
    if options.resume and options.output.exists():
        document["models"] = json.loads(options.output.read_text())["models"]

    def save() -> None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(document, indent=1) + "\n")

    for name in options.models:
        of_model = document["models"].setdefault(name, {})
        run(name, options.rows, of_model, save)
        console.print(table_of(name, of_model))
        console.print(best_of(of_model))


if __name__ == "__main__":
    main()
