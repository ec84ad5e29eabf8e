"""`gqc.load`: a checkpoint of any known format, compiled as it is stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gqc.checkpoints.checkpoint import Checkpoint, open_checkpoint
from gqc.checkpoints.configs import without_quantization
from gqc.checkpoints.gguf import Gguf
from gqc.driver.compile import compile
from gqc.errors import GqcError

GENERATION = "generation_config.json"


def load(
    path: str | Path,
    model: nn.Module | None = None,
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Any:
    """Compile a checkpoint (`gqc.checkpoints.checkpoint.open_checkpoint`), quantized as it is.

    path: a folder as Hugging Face has them, of any format that gqc reads, or a file of safetensors
    or GGUF. model: an `nn.Module` whose parameters have the names of the checkpoint's, on the meta
    device or not (its own values are not read); None makes the one of transformers that
    `config.json` names. dtype: of what is not quantized, and of activations, in that model; None
    is what the config says, or float32. options: those of `gqc.compile`; a `scheme` is for weights
    that are stored dense. The result keeps the model's type and methods unless `example_inputs` are
    given.

    Files are mapped: a weight is read when it is packed for the target, and no dense copy is made
    of one that a linear layer reads. Raises GqcError as those two do, and if the config names no
    model that transformers knows.
    """
    checkpoint = open_checkpoint(path)
    if model is None:
        model = empty_model(checkpoint, dtype)
    elif dtype is not None:
        raise GqcError("the model that is given has its dtype: convert it, or give no dtype")
    return compile(model, weights=checkpoint, **options)


def empty_model(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> nn.Module:
    """The model of transformers that the config names, its parameters on the meta device."""
    try:
        import transformers
    except ImportError as error:
        raise GqcError(
            "a model is made from config.json by transformers: pip install transformers, or give "
            "the model"
        ) from error
    if isinstance(checkpoint.reader, Gguf):
        checkpoint.reader.check_whole()
    settings = without_quantization(checkpoint.config)
    kind, names = settings.pop("model_type", None), settings.get("architectures")
    if kind not in transformers.CONFIG_MAPPING:
        raise GqcError(f"{checkpoint.path}: model_type is {kind!r}, which is not known: give model")
    config = transformers.AutoConfig.for_model(kind, **settings)
    found = getattr(transformers, names[0], None) if names else None
    with meta_parameters():
        if found is None:
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        else:
            model = found._from_config(config, dtype=dtype or config.dtype)
    if (checkpoint.path / GENERATION).is_file() and model.can_generate():
        model.generation_config = transformers.GenerationConfig.from_pretrained(checkpoint.path)
    return model


@contextmanager
def meta_parameters() -> Iterator[None]:
    """Modules made within have their parameters on the meta device, and their buffers as usual."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register
