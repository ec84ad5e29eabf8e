"""The container of GGUF: parts, folders, alignment, and files that are no models."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from checkpoints.gguf_cases import Case
from checkpoints.gguf_writer import write

from gqc.checkpoints.checkpoint import open_checkpoint
from gqc.errors import GqcError


def split(path: Path, parts: int) -> list[Path]:
    """The tensors of a file, given in turn to parts."""
    reader = gguf.GGUFReader(path)
    paths = [path.with_name(f"m-{i + 1:05}-of-{parts:05}.gguf") for i in range(parts)]
    for i, part in enumerate(paths):
        writer = gguf.GGUFWriter(part, "llama")
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", parts)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for name, stored in reader.fields.items() if i == 0 else ():
            if name.startswith("llama."):
                writer.add_key_value(name, stored.contents(), stored.types[0])
        for tensor in reader.tensors[i::parts]:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_parts_of_a_model_are_one(tmp_path: Path) -> None:
    whole = tmp_path / "whole" / "model.gguf"
    whole.parent.mkdir()
    Case("llama", "llama").write(whole)
    paths = split(whole, 3)
    expected = open_checkpoint(whole)
    (whole.parent / "model.gguf").unlink()
    for given in (paths[0], paths[2], whole.parent):
        found = open_checkpoint(given)
        assert found.config == expected.config and sorted(found.names()) == sorted(expected.names())
    assert {entry.path for entry in found.reader.file.entries.values()} == {*paths}  # pyright: ignore[reportAttributeAccessIssue]
    moved = paths[1].rename(paths[1].with_name("x.gguf"))
    with pytest.raises(GqcError, match=r"missing m-00002-of-00003\.gguf; fetch all 3 parts"):
        open_checkpoint(paths[0])
    with pytest.raises(GqcError, match=r"x\.gguf: is one of 3 parts, whose names end in"):
        open_checkpoint(moved)
    moved.rename(paths[1])
    third = paths[2].read_bytes()
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(GqcError, match=r"00003-of-00003\.gguf: is part 1 of 3"):
        open_checkpoint(paths[0])
    for path, content in ((paths[0], paths[0].read_bytes()), (paths[2], third)):
        at = content.index(b"split.tensors.count") + len(b"split.tensors.count") + 4
        path.write_bytes(content[:at] + b"\x07" + content[at + 1 :])
    with pytest.raises(GqcError, match="tensors in all parts, not 7"):
        open_checkpoint(paths[0])


def test_a_file_for_images_lies_beside_a_model(tmp_path: Path) -> None:
    Case("llama", "llama").write(tmp_path / "model.gguf")
    write(tmp_path / "mmproj.gguf", "clip", {}, {"v.weight": torch.ones(4)})
    assert open_checkpoint(tmp_path).config["model_type"] == "llama"
    with pytest.raises(GqcError, match=r"general\.architecture is 'clip', expected one of llama"):
        open_checkpoint(tmp_path / "mmproj.gguf")


@pytest.mark.parametrize("alignment", [8, 64])
def test_tensors_lie_as_the_file_says(alignment: int, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_custom_alignment(alignment)
    writer.add_head_count(2)
    values = torch.arange(7.0)
    writer.add_tensor("blk.0.attn_norm.weight", values.numpy())
    writer.add_tensor("blk.0.ffn_norm.weight", values.numpy() + 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    for i, name in enumerate(("input", "post_attention")):
        found = checkpoint.read(f"model.layers.0.{name}_layernorm.weight")
        assert torch.equal(found, values + i)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", ["big-endian", "no tensors"])
def test_files_that_are_no_models_say_why(kind: str, tmp_path: Path) -> None:
    endianess = gguf.GGUFEndian.BIG if kind == "big-endian" else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", endianess=endianess)
    writer.add_head_count(2)
    if kind == "big-endian":
        writer.add_tensor("blk.0.attn_norm.weight", torch.arange(7.0).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if kind == "big-endian":
        writer.write_tensors_to_file()
    writer.close()
    told = {"big-endian": "convert it with gguf-convert-endian", "no tensors": "tokenizer alone"}
    with pytest.raises(GqcError, match=told[kind]):
        open_checkpoint(tmp_path / "model.gguf")
