"""Saving: what is written is read back to the bit, whole or not at all."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints.memory import Memory, layer
from checkpoints.samples import SAMPLES

import gqc
from gqc.checkpoints.checkpoint import Checkpoint, open_checkpoint
from gqc.checkpoints.run import LOCK, alone
from gqc.checkpoints.save import WRITERS
from gqc.checkpoints.weights import Permuted, Prescaled, Rotated, Weight
from gqc.checkpoints.writer import form_of, unwrapped
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.formats.elements import INTEGER_BITS
from gqc.schemes import PRESETS

WEIGHT = "model.layers.0.mlp.up_proj.weight"

SCHEMES = [
    *(name for name in PRESETS if "_" not in name or not name.startswith("mx")),
    *("mxfp8_e5m2", "mxfp6_e3m2", "mxfp8_mxfp4", "mxfp4_rceil"),
    *(f"int{bits}_{group}" for bits in INTEGER_BITS for group in ("g16", "row")),
    *(f"int{bits}_g128_sym" for bits in INTEGER_BITS if bits > 1),
    "int4_g64+hqq",
    *(f"ui{b} g32 scale=f32 zero=ui{b} zero_mode=quantized scale_rule=minmax" for b in (3, 4)),
]


def same(found: Weight, expected: Weight) -> None:
    """Two weights are the same, to the bit."""
    wrappers, inner = unwrapped(found)
    expected_wrappers, expected_inner = unwrapped(expected)
    assert [kind for kind, _ in wrappers] == [kind for kind, _ in expected_wrappers]
    for (_, one), (_, other) in zip(wrappers, expected_wrappers, strict=True):
        alike(vars(one), vars(other), "weight")
    if isinstance(inner, BlockScaled):
        alike(vars(inner), vars(expected_inner))
    else:
        alike({"": inner}, {"": expected_inner})


def alike(found: dict, expected: dict, *but: str) -> None:
    assert found.keys() == expected.keys()
    for key in found.keys() - {*but}:
        one, other = found[key], expected[key]
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype and one.shape == other.shape, key
            one, other = (each.contiguous().flatten().view(torch.uint8) for each in (one, other))
            assert torch.equal(one, other), key
        else:
            assert one == other, key


def check(source: Memory | Checkpoint, folder: Path) -> Checkpoint:
    """What is saved of a source and read again is what the source has."""
    found = open_checkpoint(folder)
    assert sorted(found.names()) == sorted(source.names())
    for name in source.names():
        same(found.read(name), source.read(name))
        assert found.activation(name) == source.activation(name)
        scales = found.input_scale(name), source.input_scale(name)
        assert scales == (None, None) or torch.equal(*scales)  # pyright: ignore[reportArgumentType]
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_read_back(scheme: str, tmp_path: Path) -> None:
    source = layer(scheme)
    gqc.save(source, tmp_path / "out")
    assert check(source, tmp_path / "out").format == "gqc"


@pytest.mark.filterwarnings("ignore:inputs that the checkpoint quantizes")
@pytest.mark.parametrize("format", SAMPLES)
def test_every_format_is_written_as_our_own(format: str, tmp_path: Path) -> None:
    for variant, make in SAMPLES[format].items():
        (tmp_path / variant).mkdir()
        source = make().open(tmp_path / variant)
        gqc.save(source, tmp_path / variant / "out")
        check(source, tmp_path / variant / "out")


def test_wrappers_may_be_in_each_other(tmp_path: Path) -> None:
    source = layer("int4_g32_sym")
    weight = source.weights[WEIGHT]
    assert isinstance(weight, BlockScaled)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    rotated = Rotated(weight, 32)
    source.weights[WEIGHT] = Prescaled(Permuted(rotated, order), torch.rand(256).half())  # pyright: ignore[reportArgumentType]
    gqc.save(source, tmp_path / "out")
    check(source, tmp_path / "out")


def test_the_config_says_what_the_files_hold(tmp_path: Path) -> None:
    source = layer("nvfp4_static")
    source.config = {"model_type": "llama", "quantization_config": {"quant_method": "awq"}}
    gqc.save(source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["quantization_config"] == {
        "quant_method": "gqc",
        "version": 1,
        "forms": [
            {
                "type": "1x16 : f8E4M3FN : f4E2M1FN, global = f32",
                "shape": [48, 256],
                "wrappers": [],
                "activation": str(source.activations[WEIGHT]),
                "origin": "by hand",
            }
        ],
        "layers": {WEIGHT: 0},
    }
    assert open_checkpoint(tmp_path / "out").origin(WEIGHT).method == "by hand"
    names = set(open_checkpoint(tmp_path / "out").reader.tensors.specs)  # pyright: ignore[reportAttributeAccessIssue]
    assert {
        f"{WEIGHT}.{part}" for part in ("codes", "scale", "tensor_scale", "input_scale")
    } < names


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    gqc.save(layer("int4_g32"), tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(GqcError, match=r"version is 2, and this gqc reads up to 1: upgrade gqc"):
        open_checkpoint(tmp_path / "out")


def many(count: int) -> Memory:
    """A source of dense tensors of 4 KiB."""
    tensors = {f"model.layers.{i}.weight": torch.full((32, 32), float(i)) for i in range(count)}
    return Memory(dict(tensors))


def test_shards_are_no_larger_than_asked(tmp_path: Path) -> None:
    source = many(10)
    gqc.save(source, tmp_path / "out", max_shard_bytes=3 * 4096)
    check(source, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 10 * 4096}
    assert sorted(set(index["weight_map"].values())) == [
        f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)
    ]
    assert not [path.name for path in (tmp_path / "out").iterdir() if "gqc-save" in path.name]


def test_a_model_in_one_file_has_no_index(tmp_path: Path) -> None:
    gqc.save(many(2), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json"}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {}


def test_files_of_the_model_are_copied(tmp_path: Path) -> None:
    source = SAMPLES["awq"]["gemm"]().open(tmp_path)
    kept = ("tokenizer.json", "generation_config.json", "chat_template.jinja", "LICENSE", "code.py")
    left = ("pytorch_model.bin.index.json", ".hidden.json", "x.bin", "quant_config.json")
    for name in (*kept, *left):
        (tmp_path / name).write_text(f'"{name}"')
    (tmp_path / "folder.json").mkdir()
    gqc.save(source, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*kept, "model.safetensors", "config.json"}
    assert (tmp_path / "out" / "code.py").read_text() == '"code.py"'


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    source = SAMPLES["dense"]["sharded"]().open(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(GqcError, match="is not empty: give a new folder"):
        gqc.save(source, tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(GqcError, match=r"cannot be written: (Not a directory|File exists)"):
        gqc.save(source, tmp_path / "config.json")


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    weights = layer("int4_g32")
    with alone(tmp_path):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(GqcError, match="another run is writing there: wait for it"):
            gqc.save(weights, tmp_path)
        assert sorted(tmp_path.iterdir()) == before
    gqc.save(weights, tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_bad_arguments_are_errors_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(GqcError, match="unknown format 'gguf': choose one of gqc, compressed-"):
        gqc.save(many(1), tmp_path / "out", "gguf")
    with pytest.raises(GqcError, match="a shard of 0 bytes"):
        gqc.save(many(1), tmp_path / "out", max_shard_bytes=0)
    assert not (tmp_path / "out").exists()


class Interrupted(BaseException):
    """As a kill is: nothing handles it."""


class Failing(Memory):
    """A source that gives its first parameters, then fails."""

    after = 5

    def read(self, name: str) -> Weight:
        if self.names().index(name) >= self.after:
            raise Interrupted
        return super().read(name)


def test_what_is_not_whole_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        gqc.save(Failing(many(8).weights), tmp_path / "out", max_shard_bytes=2 * 4096)
    assert not [*(tmp_path / "out").glob("*.safetensors")]
    with pytest.raises(GqcError, match=r"neither model\.safetensors nor"):
        open_checkpoint(tmp_path / "out")
    source = many(3)
    gqc.save(source, tmp_path / "out")  # a source that cannot say that it is the same: anew
    check(source, tmp_path / "out")
    assert len([*(tmp_path / "out").iterdir()]) == 2


def test_every_step_of_the_end_may_be_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far the naming of shards comes, the folder opens only once all are named."""
    rename, source = Path.replace, many(6)
    for last in range(30):
        folder, left = tmp_path / str(last), [last]

        def replace_some(path: Path, target: Path, left: list[int] = left) -> Path:
            if left[0] == 0:
                raise Interrupted
            left[0] -= 1
            return rename(path, target)

        monkeypatch.setattr(Path, "replace", replace_some)
        try:
            gqc.save(source, folder, max_shard_bytes=2 * 4096)
        except Interrupted:
            with pytest.raises(GqcError):
                open_checkpoint(folder)
            monkeypatch.setattr(Path, "replace", rename)
            gqc.save(source, folder, max_shard_bytes=2 * 4096)
            check(source, folder)
        else:
            assert last > 6  # the shards twice, the state, config and index
            return
    raise AssertionError("never done")


def test_a_full_disk_leaves_nothing_that_opens(tmp_path: Path) -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
    try:
        with pytest.raises(GqcError, match=r"shard-00001\.tmp cannot be written: File too large"):
            gqc.save(many(20), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    with pytest.raises(GqcError, match=r"neither model\.safetensors nor"):
        open_checkpoint(tmp_path / "out")


@pytest.mark.parametrize("format", WRITERS)
def test_no_nan_is_written(format: str, tmp_path: Path) -> None:
    source = layer("int4_g32_sym")
    weight = source.weights[WEIGHT]
    assert isinstance(weight, BlockScaled)
    weight.scale[3, 1] = torch.nan
    with pytest.raises(GqcError, match=r"up_proj\.weight.*scale holds inf or NaN"):
        gqc.save(source, tmp_path / "out", format)


def test_a_type_that_files_do_not_have_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GqcError, match=r"x is of torch\.complex64, which no safetensors hold"):
        gqc.save(Memory({"x": torch.zeros(2, dtype=torch.complex64)}), tmp_path / "out")


def test_forms_tell_inputs_apart() -> None:
    source = layer("nvfp4")
    form = form_of(source.read(WEIGHT), source.activation(WEIGHT))
    assert form is not None and form != replace(form, activation=None)
    assert form_of(source.read("model.norm.weight"), None) is None
