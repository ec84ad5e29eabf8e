"""Damaged checkpoints: each is read, or refused by a GqcError.

`GQC_FUZZ_CASES=10000 pytest tests/checkpoints/test_fuzz.py -k gptq` tries more, of one format.
"""

from __future__ import annotations

import json
import os
import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.sample import Sample, tensors_of
from checkpoints.samples import SAMPLES
from safetensors.torch import save

from gqc.checkpoints.checkpoint import open_checkpoint
from gqc.errors import GqcError

CASES = int(os.environ.get("GQC_FUZZ_CASES", "300"))
MEMORY = 1 << 30
"""Bytes that reading a damaged file of some kilobytes may take, at most."""

Files = dict[str, bytes]
VALUES = (None, True, -1, 0, 1, 3, 5, 17, 64, 1 << 31, 1 << 63, 10**30, 0.5, "", "x", "../x")
JUNK: tuple[Any, ...] = (*VALUES, [], {}, [1, 2], {"a": 1}, "int8", float("nan"), "re:(")


def flip_bytes(random: random.Random, files: Files) -> None:
    name = random.choice([*files])
    content = bytearray(files[name])
    reach = random.choice([len(content), min(len(content), 1024)])  # headers more often
    for _ in range(random.randint(1, 8)):
        if reach:
            byte = random.choice([0, 1, 0x7F, 0xFF, random.randrange(256)])
            content[random.randrange(reach)] = byte
    files[name] = bytes(content)


def cut(random: random.Random, files: Files) -> None:
    name = random.choice([*files])
    files[name] = files[name][: random.randrange(len(files[name]) + 1)]


def extend(random: random.Random, files: Files) -> None:
    files[random.choice([*files])] += random.randbytes(random.randint(1, 64))


def remove(random: random.Random, files: Files) -> None:
    del files[random.choice([*files])]


def edit(random: random.Random, value: Any) -> Any:
    """A JSON value with something in it replaced, removed or added."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice([*value])
        match random.randrange(6):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {**value, key + "x": value[key]}
            case _:
                return {**value, key: edit(random, value[key])}
    if isinstance(value, list) and value and random.random() < 0.7:
        i = random.randrange(len(value))
        return [*value[:i], edit(random, value[i]), *value[i + 1 :]]
    if isinstance(value, str) and value.startswith("{") and random.random() < 0.9:
        return json.dumps(edit(random, json.loads(value)))
    return random.choice(JUNK)


def edit_json(random: random.Random, files: Files) -> None:
    names = [name for name in files if name.endswith(".json")]
    if names:
        name = random.choice(names)
        files[name] = json.dumps(edit(random, json.loads(files[name]))).encode()


def edit_header(random: random.Random, files: Files) -> None:
    """Edit the header of safetensors, their data staying as they are."""
    names = [name for name in files if name.endswith(".safetensors")]
    if names:
        name = random.choice(names)
        size = int.from_bytes(files[name][:8], "little")
        header = json.loads(files[name][8 : 8 + size])
        text = json.dumps(edit(random, header)).encode()
        files[name] = len(text).to_bytes(8, "little") + text + files[name][8 + size :]


def changed(random: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of another shape, format or content."""
    flat = tensor.flatten()
    match random.randrange(6):
        case 0:
            return tensor.T.contiguous() if tensor.dim() == 2 else flat
        case 1:
            return flat[: random.randrange(len(flat) + 1)].clone()
        case 2:
            dtypes = (torch.float32, torch.float16, torch.int32, torch.uint8, torch.int64)
            return tensor.float().to(random.choice(dtypes))
        case 3:
            return tensor.unsqueeze(random.randrange(tensor.dim() + 1))
        case 4:
            return tensor[..., :-1].contiguous() if tensor.dim() else tensor.reshape(1, 1, 1)
        case _:
            raw = flat.contiguous().view(torch.uint8).clone()
            for _ in range(random.randint(1, 4)):
                if len(raw):
                    raw[random.randrange(len(raw))] = random.randrange(256)
            return raw.view(tensor.dtype).view(tensor.shape)


def edit_tensors(random: random.Random, files: Files) -> None:
    """Write safetensors anew, with a tensor changed, dropped, renamed or added."""
    names = [name for name in files if name.endswith(".safetensors")]
    if not names:
        return
    name = random.choice(names)
    size = int.from_bytes(files[name][:8], "little")
    metadata = json.loads(files[name][8 : 8 + size]).get("__metadata__")
    tensors = tensors_of(files[name])
    key = random.choice([*tensors])
    match random.randrange(5):
        case 0:
            del tensors[key]
        case 1:
            tensors[key + random.choice(["s", ".weight", "_scales"])] = tensors.pop(key)
        case _:
            tensors[key] = changed(random, tensors[key])
    files[name] = save(tensors, metadata)


MUTATIONS: tuple[Callable[[random.Random, Files], None], ...] = (
    *(flip_bytes, flip_bytes, cut, extend, remove),
    *(edit_json, edit_json, edit_header, edit_header, edit_tensors, edit_tensors, edit_tensors),
)


def read_all(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    for name in checkpoint.names():
        for ask in (checkpoint.read, checkpoint.activation, checkpoint.input_scale):
            try:
                ask(name)
            except GqcError as error:
                assert str(error)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What asks for much memory fails, with another error than GqcError."""
    old = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


@pytest.mark.filterwarnings("ignore:inputs that the checkpoint quantizes")
@pytest.mark.parametrize("format", SAMPLES)
def test_damage_is_read_or_refused(format: str, tmp_path: Path, little_memory: None) -> None:
    samples: list[Sample] = [make() for make in SAMPLES[format].values()]
    refused = 0
    for case in range(CASES):
        chance = random.Random(f"{format} {case}")
        files = dict(chance.choice(samples).files)
        mutation = chance.choice(MUTATIONS)
        mutation(chance, files)
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        try:
            read_all(tmp_path)
        except GqcError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"case {case}, {mutation.__name__}: {error!r}") from error
        for path in tmp_path.iterdir():
            path.unlink()
    assert 0 < refused < CASES
