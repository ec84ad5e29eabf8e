"""Rotary embeddings of GGUF files, in transformers' `rope_parameters`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from gqc.errors import GqcError

if TYPE_CHECKING:
    from gqc.checkpoints.gguf_config import Architecture, Config, Hyperparameters
    from gqc.checkpoints.gguf_file import GgufFile

FREQS = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
FACTORS = (FREQS, LONG, SHORT)
"""Tensors of what frequencies are divided by; they are no parameters of the model."""

BASE = 10000.0
"""Of the frequencies, where a file does not say."""

LLAMA3_CONTEXT = 8192
"""Tokens that Llama 3 was first trained on; only its ratios to wavelengths count."""

LONGEST = 4096
"""Factors at most."""


def rope_parameters(
    known: Hyperparameters, architecture: Architecture, config: Config
) -> dict[str, Any]:
    """The parameters of a model, by the kinds of its layers where they differ by these.

    Raises GqcError that names what the model cannot follow.
    """
    base = float(known.number("rope.freq_base", BASE)) or BASE
    local = float(known.number("rope.freq_base_swa", architecture.local_base or base))
    dim, head = rotated(known, architecture, config)
    plain: dict[str, Any] = {"rope_type": "default"}
    if architecture.partial:
        plain["partial_rotary_factor"] = fraction(dim, head)
    main = plain | {"rope_theta": base} | scaling(known, architecture, base, dim)
    if architecture.temperature:
        main["llama_4_scaling_beta"] = known.number("attention.temperature_scale", 0)
        main.setdefault("original_max_position_embeddings", trained_context(known))
    if architecture.apart:
        return {
            "sliding_attention": plain | {"rope_theta": local},
            "full_attention": main,
        }
    if local != base:
        known.read.discard("rope.freq_base_swa")
    return main


def rotated(known: Hyperparameters, architecture: Architecture, config: Config) -> tuple[int, int]:
    """How many elements of a head rotate, and how many there are."""
    head = config.get("qk_rope_head_dim") or config.get("head_dim")
    keys = ("rope.dimension_count_swa", "rope.dimension_count")
    known.read.update(keys)
    if head is None:
        return 0, 0
    for key in keys:
        dim = known.size(key, head)
        if dim != head and (not architecture.partial or dim > head or key.endswith("swa")):
            known.read.discard(key)
    return dim, head


def fraction(dim: int, head: int) -> float:
    """The factor by which transformers gets from the size of a head to what rotates of it."""
    factor = dim / head if head else 1.0
    while int(head * factor) < dim:
        factor = math.nextafter(factor, 2)
    return factor


def trained_context(known: Hyperparameters) -> int:
    """Tokens of the contexts that the model was first trained on."""
    key = "rope.scaling.original_context_length"
    if known.get(key) is None:
        key = "context_length"
    if known.get(key) is None:
        raise known.error(key, "is not there, by which rotary embeddings are scaled")
    return known.size(key, 1)


def scaling(
    known: Hyperparameters, architecture: Architecture, base: float, dim: int
) -> dict[str, Any]:
    """What is added for contexts longer than those of the training."""
    kind = known.one("rope.scaling.type", "linear")
    old = known.number("rope.scale_linear", 0)
    factor = known.number("rope.scaling.factor", old) or 1.0
    attention = known.number("rope.scaling.attn_factor", 1)
    known.read.add("rope.scaling.original_context_length")
    file = known.file
    if LONG in file.entries or SHORT in file.entries or kind == "longrope":
        short, long = factors(file, SHORT, dim), factors(file, LONG, dim)
        return listed(known, short, long, attention)
    if FREQS in file.entries:
        if factor != 1:
            raise known.error("rope.scaling.factor", f"is {factor}, and {FREQS} scales too")
        freqs = factors(file, FREQS, dim)
        if bool((freqs == 1).all()):
            return {}
        return llama3(freqs.double(), base) or listed(known, freqs, freqs, 1.0)
    if kind == "yarn":
        return yarn(known, factor, attention, architecture)
    if attention != 1:
        known.read.discard("rope.scaling.attn_factor")
    if kind == "none" or (kind == "linear" and factor == 1):
        return {}
    if kind != "linear":
        raise known.error(
            "rope.scaling.type", f"is {kind!r}, expected none, linear, yarn or longrope"
        )
    return {"rope_type": "linear", "factor": factor}


def listed(
    known: Hyperparameters, short: torch.Tensor, long: torch.Tensor, attention: float
) -> dict[str, Any]:
    """Frequencies divided by factors, other ones beyond the contexts of the training."""
    original = trained_context(known)
    return {
        "rope_type": "longrope",
        "short_factor": short.tolist(),
        "long_factor": long.tolist(),
        "attention_factor": attention,
        "factor": known.size("context_length", original) / original,
        "original_max_position_embeddings": original,
    }


def yarn(
    known: Hyperparameters,
    factor: float,
    attention: float,
    architecture: Architecture,
) -> dict[str, Any]:
    if known.one("rope.scaling.yarn_ext_factor", 1.0) not in (1, -1):
        known.read.discard("rope.scaling.yarn_ext_factor")
    said: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    said |= {"original_max_position_embeddings": trained_context(known), **architecture.yarn}
    for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
        if known.get(f"rope.scaling.{key}") is not None:
            said[name] = float(known.number(f"rope.scaling.{key}", 0))
    if log := known.number("rope.scaling.yarn_log_multiplier", 0) / architecture.log_unit:
        said |= {"mscale_all_dim": log, "mscale": 1.0 if architecture.log_unit == 1 else log}
    usual = magnitude(factor, said.get("mscale", 1)) / magnitude(
        factor, said.get("mscale_all_dim", 0)
    )
    stored = known.number("rope.scaling.yarn_attn_factor", 0) or usual
    if stored != usual or attention != 1:
        said["attention_factor"] = float(stored * attention)
    return said


def magnitude(factor: float, scale: float) -> float:
    """What YaRN multiplies queries and keys by, of contexts that are `factor` times as long."""
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


def factors(file: GgufFile, name: str, dim: int) -> torch.Tensor:
    """A tensor of factors, float32 [dim / 2]. Raises GqcError if it is none."""
    entry = file.entries.get(name)
    if entry is None:
        raise GqcError(f"{file.path}: has no {name}, which its rope scaling needs")
    if entry.type != 0 or len(entry.shape) != 1 or not 0 < entry.shape[0] <= LONGEST:
        raise GqcError(f"{file.path}: {name} is of type {entry.type} {list(entry.shape)}, not F32")
    if dim and entry.shape[0] != dim // 2:
        raise GqcError(f"{file.path}: {name} has {entry.shape[0]} factors, expected {dim // 2}")
    found = file.bytes_of(name, 4 * entry.shape[0], 4).clone().view(torch.float32)
    if not bool((torch.isfinite(found) & (found > 0)).all()):
        raise GqcError(f"{file.path}: {name} has factors that are not positive numbers")
    return found


def llama3(freqs: torch.Tensor, base: float) -> dict[str, Any] | None:
    """Llama 3's rule that makes these factors, or None.

    It is better than a list, which models choose by the length of each input: no graph captures it.
    It divides no frequency of a wavelength below c / high, all above c / low by one factor, and
    between them the reciprocal of what it divides by is linear in the frequency.
    """
    dim = 2 * len(freqs)
    plain = base ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    turns = LLAMA3_CONTEXT * plain / (2 * math.pi)
    factor = float(freqs.max())
    between = ((freqs > 1) & (freqs < factor)).nonzero().flatten()
    guesses = [(1.0, 4.0)]
    if len(between) > 1:
        smooth = (1 / freqs - 1 / factor) / (1 - 1 / factor)
        first, last = int(between[0]), int(between[-1])
        slope = (smooth[first] - smooth[last]) / (turns[first] - turns[last])
        low = float(turns[first] - smooth[first] / slope)
        guesses.append((round(low, 4), round(low + float(1 / slope), 4)))
    for low, high in guesses:
        smooth = ((turns - low) / (high - low)).clamp(0, 1) if high > low else turns
        made = 1 / ((1 - smooth) / factor + smooth)
        if factor > 1 and bool(((made - freqs).abs() < 1e-5 * freqs).all()):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": LLAMA3_CONTEXT,
            }
    return None
