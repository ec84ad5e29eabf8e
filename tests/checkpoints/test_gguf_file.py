"""The container of GGUF: parts, folders, alignment, and files that are no models."""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from checkpoints.gguf_cases import Case
from checkpoints.gguf_writer import add_key, write
from checkpoints.peers import blocks_of
from gguf import GGMLQuantizationType as Type
from gguf.scripts.gguf_convert_endian import convert_byteorder

from gqc.checkpoints.checkpoint import open_checkpoint
from gqc.checkpoints.weights import dense
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


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    Case("llama", "llama").write(tmp_path / "model.gguf")
    blob = (tmp_path / "model.gguf").rename(tmp_path / "sha256-6a0746a1")
    assert open_checkpoint(blob).format == "gguf"


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


def test_a_file_without_tensors_says_so(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_head_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(GqcError, match="tokenizer alone"):
        open_checkpoint(tmp_path / "model.gguf")


SWAPPED = (None, Type.F16, Type.BF16, Type.Q4_0, Type.Q8_0, Type.Q4_K, Type.Q6_K, Type.MXFP4)


def test_big_endian_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the gguf package's own tool writes them."""
    keys = {"attention.head_count": 2, "rope.freq_base": 5e5, "context_length": 64}
    keys["embedding_length"] = 32
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in keys.items():
        add_key(writer, f"llama.{key}", value)
    writer.add_custom_alignment(64)
    writer.add_tensor("rope_freqs.weight", np.arange(1, 9, dtype=np.float32))
    for i, type in enumerate(SWAPPED):
        if type in (None, Type.F16, Type.BF16):
            values = np.arange(512, dtype=np.float32).reshape(2, 256) / 7
            raw = values if type is None else gguf.quants.quantize(values, type)
        else:
            raw = blocks_of(type, 2, 256)
        writer.add_tensor(f"blk.{i}.ffn_down.weight", raw, raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = open_checkpoint(path)
    swapped = tmp_path / "swapped.gguf"
    swapped.write_bytes(path.read_bytes())
    monkeypatch.setattr("builtins.input", lambda text: "YES")
    arguments = argparse.Namespace(order="big", dry_run=False, verbose=False)
    convert_byteorder(gguf.GGUFReader(swapped, "r+"), arguments)
    assert swapped.read_bytes()[4:8] == bytes([0, 0, 0, 3])
    found = open_checkpoint(swapped)
    assert found.config == expected.config and found.config["rope_parameters"]["rope_theta"] == 5e5
    assert found.names() == expected.names() and len(found.names()) == len(SWAPPED)
    for name in found.names():
        weight, other = found.read(name), expected.read(name)
        assert torch.equal(dense(weight), dense(other)), name


def test_blocks_that_no_tool_swaps_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    for i, type in enumerate((Type.Q5_1, Type.IQ2_XXS)):
        writer.add_tensor(f"blk.{i}.ffn_down.weight", blocks_of(type, 2, 256), raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(path)
    for i, told in enumerate(("is Q5_1", "is of type 16")):
        with pytest.raises(GqcError, match=f"{told} in a big-endian file: convert it where"):
            checkpoint.read(f"model.layers.{i}.mlp.down_proj.weight")
