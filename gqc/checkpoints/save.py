"""`gqc.save`: parameters from anywhere to a folder as Hugging Face has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gqc.checkpoints.checkpoint import CONFIG
from gqc.checkpoints.configs import CONFIG_KEYS, OWN_FILES, without_quantization
from gqc.checkpoints.files import INDEX, is_finite
from gqc.checkpoints.progress import Bar
from gqc.checkpoints.run import STATE, Run, alone
from gqc.checkpoints.shards import DTYPES, ENTRY
from gqc.checkpoints.source import Outlined, Source
from gqc.checkpoints.write_compressed_tensors import CompressedTensorsWriter
from gqc.checkpoints.write_gqc import GqcWriter
from gqc.checkpoints.writer import Form, Tensors, Writer, form_of
from gqc.errors import GqcError
from gqc.passes.helpers import count

if TYPE_CHECKING:
    from gqc.checkpoints.weights import Weight

WRITERS: dict[str, type[Writer]] = {
    "gqc": GqcWriter,
    "compressed-tensors": CompressedTensorsWriter,
}
"""What writes each format."""

SHARD = 5_000_000_000
"""Bytes of a shard, as Hugging Face has them."""

PARAMETERS = 1024
"""Parameters that a shard's header has room for at least; tensors of each, at most."""
PARTS = 8

COMPANIONS = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".spm", ".bpe", ".py")
"""Files beside the weights that belong to the model too: tokenizers, templates, code."""
REPLACED = (CONFIG, INDEX, STATE, *(own.name for own in OWN_FILES))
"""Files that say how the input was stored."""


def save(
    source: Source,
    folder: str | Path,
    format: str = "gqc",
    max_shard_bytes: int = SHARD,
    progress: bool | None = None,
) -> None:
    """Write a source of parameters as a checkpoint: safetensors, an index, config.json.

    source: a checkpoint, a quantized model, or anything that has the methods of `Source`. format: a
    row of `WRITERS`; `gqc` holds every weight there is, `compressed-tensors` what that library has.
    max_shard_bytes: of tensors in a file; one parameter may be larger. progress: show a bar; None
    does where standard error is a terminal. Tokenizers and other files beside the source's weights
    are copied.

    One parameter is in memory at a time. The folder opens as a checkpoint only once it is whole.
    What is left in it by an interrupted run is gone on with where the source knows that it gives
    the same again (`Outlined`), else written anew.

    Raises GqcError, before anything is written, on an unknown format, on a folder that holds
    anything else or that another run is writing to, and, naming all of them, on weights that the
    format cannot hold; later on parameters that hold inf or NaN, and on a disk that cannot be
    written.
    """
    if format not in WRITERS:
        raise GqcError(f"unknown format {format!r}: choose one of {', '.join(WRITERS)}")
    if max_shard_bytes < 1:
        raise GqcError(f"a shard of {max_shard_bytes} bytes: give a positive number")
    names = source.names()
    forms: dict[str, Form] = {}
    writer = WRITERS[format](forms)
    if isinstance(source, Outlined) or writer.selective:
        forms.update(survey(source, names))
        refuse_unheld(writer, format)
        writer.warn(source.config)
    fingerprint = None
    if isinstance(source, Outlined):
        fingerprint = f"{format} {max_shard_bytes} {source.fingerprint()}"
    with alone(Path(folder)):
        run = Run(Path(folder), fingerprint)
        with Bar(source, names, run.parameters, progress) as bar:
            write_shards(source, names, writer, run, max_shard_bytes, bar)
        specs = run.written().specs
        dense = [n for n in names if n not in forms and n in specs and len(specs[n].shape) == 2]
        run.complete(other_files(source, writer.quantization(dense) if forms else None))


def survey(source: Source, names: list[str]) -> Iterator[tuple[str, Form]]:
    """Forms of the quantized weights of a source, which reads them if it cannot say."""
    for name in names:
        known = isinstance(source, Outlined)
        form = source.form(name) if known else form_in(source, name, source.read(name))
        if form is not None:
            yield name, form


def form_in(source: Source, name: str, weight: Weight) -> Form | None:
    """The form of a weight that was read; None for a dense one."""
    if isinstance(weight, torch.Tensor):
        return None
    return form_of(weight, source.activation(name), source.origin(name).method)


def refuse_unheld(writer: Writer, format: str) -> None:
    """Raise one error for all weights that a format cannot hold."""
    problems = [(name, text) for name in writer.forms if (text := writer.problem(name))]
    if not problems:
        return
    lines = "\n".join(f"  {name}: {text}" for name, text in problems)
    others = ", ".join(other for other in WRITERS if not WRITERS[other].selective)
    raise GqcError(
        f"{format} cannot hold {count(len(problems), 'weight')}:\n{lines}\n"
        f"change what is named, or write format {others!r}, which holds them"
    )


def write_shards(
    source: Source, names: list[str], writer: Writer, run: Run, limit: int, bar: Bar
) -> None:
    """Write the parameters that are not yet, one at a time."""
    first = run.parameters
    shard, held = None, 0
    for i, name in enumerate(names[first:], first):
        try:
            tensors = stored(source, name, writer)
        except GqcError as error:
            raise with_others(error, source, names[i + 1 :], writer) from error
        if shard is not None and not shard.takes(tensors, limit):
            run.end(shard, held)
            shard = None
        if shard is None:
            shard, held = run.begin(header(names[i : i + PARAMETERS])), 0
        shard.add(tensors)
        held += 1
        bar.advance(name)
    if shard is not None:
        run.end(shard, held)


def with_others(error: GqcError, source: Source, names: list[str], writer: Writer) -> GqcError:
    """One error for a parameter that cannot be stored and for all others, after it, that cannot."""
    problems = [str(error)]
    for name in names:
        try:
            stored(source, name, writer)
        except GqcError as other:
            problems.append(str(other))
    if len(problems) == 1:
        return error
    return GqcError("\n  ".join([f"{len(problems)} parameters cannot be stored:", *problems]))


def header(names: list[str]) -> int:
    """Bytes for the entries of these parameters' tensors."""
    return ENTRY + sum(PARTS * (ENTRY + len(json.dumps(name))) for name in names)


def stored(source: Source, name: str, writer: Writer) -> Tensors:
    """The tensors that a parameter is stored as. Raises GqcError on inf and NaN."""
    weight = source.read(name)
    form = form_in(source, name, weight)
    if form is not None:
        tensors = parts_of(source, name, weight, form, writer)
    else:
        assert isinstance(weight, torch.Tensor)
        tensors = {name: weight}
    for part, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise GqcError(f"{part} is of {tensor.dtype}, which no safetensors hold")
        if not is_finite(tensor):
            raise GqcError(f"{part} holds inf or NaN: quantize finite weights")
    return tensors


def parts_of(source: Source, name: str, weight: Weight, form: Form, writer: Writer) -> Tensors:
    if writer.forms.setdefault(name, form) != form:
        raise GqcError(f"{name} is {form}, after {writer.forms[name]}: the source has changed")
    return writer.parts(name, weight, source.input_scale(name))


def other_files(source: Source, quantization: dict[str, Any] | None) -> dict[str, bytes]:
    """The config, and files beside the source's weights that belong to the model too."""
    config = without_quantization(source.config)
    if quantization is not None:
        config[CONFIG_KEYS[0]] = quantization
    files = {path.name: path.read_bytes() for path in companions(source)}
    return {**files, CONFIG: json.dumps(config, indent=2).encode()}


def companions(source: Source) -> list[Path]:
    """Files to copy from the source's folder, if it is one."""
    path = getattr(source, "path", None)
    if path is None or not path.is_dir():
        return []
    return [
        file
        for file in sorted(path.iterdir())
        if file.is_file()
        and (file.suffix in COMPANIONS or file.name.startswith(("LICENSE", "NOTICE")))
        and file.name not in REPLACED
        and not file.name.startswith(".")
        and not file.name.endswith(".index.json")
    ]
