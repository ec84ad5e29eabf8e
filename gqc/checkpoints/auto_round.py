"""AutoRound, which stores weights in the layouts of other tools, named by `packing_format`.

Its config is translated into that of the layout, which that tool's reader then reads. Layers that
`extra_config` names, or matches anywhere in their name, have settings of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gqc.checkpoints.awq import Awq
from gqc.checkpoints.compressed_tensors import CompressedTensors
from gqc.checkpoints.files import Tensors, option
from gqc.checkpoints.fp8 import Fp8
from gqc.checkpoints.gptq import Gptq
from gqc.checkpoints.reader import Reader, warn_of_inputs
from gqc.errors import GqcError

DENSE_BITS = 16
"""Layers of this many bits, and more, are not quantized."""

ROTATIONS = ("rotation_config", "spinquant_config")
"""Keys of what is done to inputs as the model runs."""

Config = Mapping[str, Any]


def gptq(form: str) -> Callable[[Config], dict[str, Any]]:
    """The config of GPTQ; `form` says whether zero points are stored less one."""
    return lambda config: {**common(config), "checkpoint_format": form, "dynamic": dynamic(config)}


def awq(config: Config) -> dict[str, Any]:
    return {**common(config), "version": "gemm", "dynamic": dynamic(config)}


def common(config: Config) -> dict[str, Any]:
    keys = ("bits", "group_size", "sym")
    if (kind := option(config, "data_type", str, "int")) not in ("int", "int_sym", "int_asym"):
        raise GqcError(f"quantization config: data_type is {kind!r} in a layout of integers")
    return {"sym": True, **{key: config[key] for key in keys if config.get(key) is not None}}


def dynamic(config: Config) -> dict[str, Any]:
    """The exceptions as GPTQModel says them: whole names count before parts of names."""
    extra = exceptions(config)
    patterns = {
        **{f"{re.escape(name)}$": changes for name, changes in extra.items()},
        **{f".*?(?:{name})": changes for name, changes in extra.items()},
    }
    return {
        f"-:{key}" if is_dense(changes) else f"+:{key}": changes
        for key, changes in patterns.items()
    }


def fp8(config: Config) -> dict[str, Any]:
    """The config of FP8, whose reader tells from shapes what each scale is for."""
    kind, group = option(config, "data_type", str, ""), config.get("group_size")
    if not kind.startswith("fp") or option(config, "bits", int, 8) != 8:
        raise GqcError(f"quantization config: data_type is {kind!r} in a layout of FP8")
    return {"weight_block_size": group if isinstance(group, list) else None}


def exceptions(config: Config) -> dict[str, dict[str, Any]]:
    extra = option(config, "extra_config", dict, {})
    if wrong := [name for name, changes in extra.items() if not isinstance(changes, dict)]:
        raise GqcError(f"quantization config: extra_config of {wrong[0]!r} is no object")
    return extra


def is_dense(config: Config) -> bool:
    return option(config, "bits", int, 4) >= DENSE_BITS


FLOATS: dict[tuple[str, int], tuple[str, dict[str, Any]]] = {
    ("nv_fp", 4): ("nvfp4-pack-quantized", {"strategy": "tensor_group", "group_size": 16}),
    ("mx_fp", 4): ("mxfp4-pack-quantized", {"strategy": "group", "group_size": 32}),
    ("mx_fp", 8): ("mxfp8-quantized", {"strategy": "group", "group_size": 32}),
    ("fp", 8): ("float-quantized", {}),
}
"""Layout of compressed-tensors by the start of `data_type` and bits, and how scales are shared."""
OF_GROUP = {-1: {"strategy": "channel"}, 0: {"strategy": "tensor"}}
"""The same of a layout that does not say it, by `group_size`."""


def floats(config: Config) -> dict[str, Any]:
    """The config of compressed-tensors: a group for each exception, and one for the rest."""
    groups = {}
    for i, (name, changes) in enumerate(exceptions(config).items()):
        if not is_dense(changes):
            targets = [name, f"re:.*?(?:{name})"]
            groups[f"group_{i}"] = {**group({**config, **changes}), "targets": targets}
    groups["rest"] = {**group(config), "targets": ["Linear"]}
    return {"config_groups": groups}


def group(config: Config) -> dict[str, Any]:
    weights = float_format(config, "")
    if weights is None:
        kind, bits = config.get("data_type"), config.get("bits")
        raise GqcError(
            f"quantization config: data_type {kind!r} of {bits} bits in packing_format "
            f"{config.get('packing_format')!r} is not read: export to auto_gptq or auto_awq"
        )
    layout, arguments = weights
    inputs = float_format(config, "act_")
    return {
        "format": layout,
        "weights": arguments,
        "input_activations": None if inputs is None else inputs[1],
    }


def float_format(config: Config, prefix: str) -> tuple[str, dict[str, Any]] | None:
    """Layout and arguments of weights, or, under the prefix `act_`, of inputs; None of no float."""
    bits = option(config, f"{prefix}bits", int, DENSE_BITS)
    kind = option(config, f"{prefix}data_type", str, "")
    for (start, width), (layout, arguments) in FLOATS.items():
        if kind.startswith(start) and bits == width:
            shared = arguments or OF_GROUP.get(option(config, f"{prefix}group_size", int))
            if shared is not None:
                return layout, {"type": "float", "num_bits": bits, **shared}
    return None


@dataclass(frozen=True)
class Packing:
    """One row: what reads a layout, and what makes the config for it."""

    reader: type[Reader]
    translate: Callable[[Config], dict[str, Any]]


V1, V2 = Packing(Gptq, gptq("gptq")), Packing(Gptq, gptq("gptq_v2"))
PACKINGS: dict[str, Packing] = {
    "auto_awq": Packing(Awq, awq),
    "awq": Packing(Awq, awq),
    "gptqmodel": V2,
    "auto_gptq": V1,
    "gptq": V1,
    "llm_compressor": Packing(CompressedTensors, floats),
    "fp8_static": Packing(Fp8, fp8),
    "fp8": Packing(Fp8, fp8),
    "auto": V1,
}
"""Layouts by a part of `packing_format`, which is `auto_round:LAYOUT`."""
KERNELS = ("", "exllamav2", "tritonv2", "triton", "marlin", "cuda")
"""Parts that name a kernel of AutoRound's own layout, in which zero points are as they are."""


def auto_round(tensors: Tensors, quantization: dict[str, Any], config: dict[str, Any]) -> Reader:
    """The reader of a checkpoint by AutoRound. Raises GqcError on a layout that is not known."""
    is_fp8 = option(quantization, "data_type", str, "").startswith("fp")
    usual = "auto_round:fp8" if is_fp8 else "auto_round:auto_gptq"
    packing = packing_of(option(quantization, "packing_format", str, usual))
    for key in ROTATIONS:
        if rotation := quantization.get(key):
            raise GqcError(
                f"quantization config: {key} {rotation!r} is not read: export without rotations"
            )
    bits = option(quantization, "act_bits", int, DENSE_BITS)
    if bits < DENSE_BITS and packing.reader in (Gptq, Awq):
        warn_of_inputs(f"{bits} bits")
    return packing.reader(tensors, packing.translate(quantization), config)


def packing_of(form: str) -> Packing:
    first, *parts = re.split("[:]", form)
    if first in PACKINGS and not parts:
        return PACKINGS[first]
    known = next((PACKINGS[part] for part in parts if part in PACKINGS), None)
    if known is None and first in ("auto_round", "autoround") and set(parts) <= {*KERNELS}:
        known = V2
    if known is None:
        raise GqcError(
            f"quantization config: packing_format is {form!r}, expected auto_round or "
            f"auto_round: with one of {', '.join(PACKINGS)}: export to one of these"
        )
    return known
