"""Where the parameters of the dense model are in a GGUF file, and how they are made of its tensors.

The gguf package's table gives the tensor of each module's name; the modules are those of
transformers' model for the file's config. Most parameters are one tensor as it is; `LAYOUTS` has
those that are not.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from gqc.checkpoints.gguf_config import FLAGS, REMEDY, Architecture, Config, has, is_block
from gqc.checkpoints.gguf_file import GgufFile
from gqc.checkpoints.gguf_rope import FACTORS
from gqc.checkpoints.weights import Transposed, Weight, dense
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled

Stored = torch.Tensor | BlockScaled
"""A tensor of the file."""


@dataclass(frozen=True)
class Parameter:
    """The names of the tensors that a parameter is made of, and what makes it of them."""

    entries: tuple[str, ...]
    make: Callable[[list[Stored]], Weight] = lambda stored: stored[0]


def part(weight: Stored, index: Any) -> Stored:
    """Rows of a weight [N, …], of a bias, or of scales, by what indexes them."""
    if isinstance(weight, torch.Tensor):
        return weight[index]
    zero = None if weight.zero is None else weight.zero[index]
    return replace(weight, codes=weight.codes[index], scale=weight.scale[index], zero=zero)


def joined(parts: list[Stored], dim: int = 0) -> Stored:
    """Weights one below the other: of one type as they are, of several types dense."""
    types = {str(p.type) if isinstance(p, BlockScaled) else "dense" for p in parts}
    first = parts[0]
    if len(types) > 1 or isinstance(first, torch.Tensor) or first.tensor_scale is not None:
        return torch.cat(
            [decoded(p, "one weight is of parts in several types") for p in parts], dim
        )
    fields = {}
    for name in ("codes", "scale", "zero"):
        found = [getattr(p, name) for p in parts]
        fields[name] = None if found[0] is None else torch.cat(found, dim)
    return replace(first, **fields)


def decoded(weight: Stored, why: str) -> torch.Tensor:
    """A weight in float32, and a warning if it was quantized."""
    if not isinstance(weight, torch.Tensor):
        warnings.warn(f"{why}: decoded, and its layers run dense", stacklevel=2)
    return dense(weight)


def alternating(parts: list[Stored]) -> Stored:
    """Two stacks [E, N, …], their rows taking turns in [E, 2N, …]."""
    both = joined(parts, 1)
    rows = (both if isinstance(both, torch.Tensor) else both.codes).shape[1]
    order = torch.arange(rows).view(2, -1).t().flatten()
    return part(both, (slice(None), order))


def turned(weight: Stored) -> Weight:
    """A stack [E, N, K] as a parameter [E, K, N]."""
    return weight.transpose(1, 2) if isinstance(weight, torch.Tensor) else Transposed(weight)


def pairs_to_halves(n: int, heads: int, what: str) -> torch.Tensor:
    """The order that puts rows in pairs, which rotate together, into the halves of each head."""
    if heads < 1 or n % (2 * heads):
        raise GqcError(f"{what} has {n} rows, for {heads} heads")
    return torch.arange(n).view(heads, -1, 2).transpose(1, 2).flatten()


class Names:
    """The parameters of a file. Raises GqcError that names tensors that are in no parameter."""

    def __init__(self, file: GgufFile, prefix: str, architecture: Architecture, config: Config):
        self.file, self.prefix = file, prefix
        self.architecture, self.config = architecture, config
        try:
            self.shapes = shapes_of(json.dumps(config, sort_keys=True))
        except GqcError as error:
            raise GqcError(f"{file.path}: {error}") from error
        self.find = tensor_names(prefix, config["num_hidden_layers"])
        self.parameters = dict(self.found())
        self.refuse_others()

    def found(self) -> Iterator[tuple[str, Parameter]]:
        for name in self.asked():
            layout = next((make for end, make in LAYOUTS.items() if re.search(end, name)), plain)
            parameter = layout(self, name)
            if parameter is not None:
                yield name, self.changed(name, parameter)
        yield from self.single_experts()

    def asked(self) -> Iterator[str]:
        """The model's names, and those of stacks of experts' gates and others apart."""
        for name in self.shapes:
            stack = name.removesuffix("gate_up_proj")
            if stack != name and len(self.shapes[name]) == 3 and not self.architecture.interleaved:
                yield from (f"{stack}gate_proj", f"{stack}up_proj")
            yield name

    def entry(self, name: str) -> str | None:
        """The tensor of a parameter, by the ending of its name, or `.weight` where it has none."""
        module, dot, leaf = name.rpartition(".")
        if leaf in ("weight", "bias"):
            found = self.find(module)
            return None if found is None else self.stored(f"{found}{dot}{leaf}")
        found = self.find(name)
        return None if found is None else self.stored(found) or self.stored(f"{found}.weight")

    def stored(self, entry: str) -> str | None:
        return entry if entry in self.file.entries else None

    def block(self, name: str, tensor: str) -> str | None:
        """A tensor of the block that a parameter's layer is, by its own name."""
        match = re.match(r"model\.layers\.(\d+)\.", name)
        return None if match is None else self.stored(f"blk.{match[1]}.{tensor}")

    def changed(self, name: str, parameter: Parameter) -> Parameter:
        """What all parameters of a kind have otherwise: rows of q and k, weights of norms."""
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        module = name.rpartition(".")[0].rpartition(".")[2]
        if self.architecture.rotary and module in heads and parameter.entries:
            count = self.config.get(heads[module])
            if count is None:
                raise GqcError(
                    f"{self.file.path}: has no {self.prefix}.attention.head_count, by which the "
                    f"rows of {parameter.entries[0]} are ordered; convert the model anew"
                )

            def in_halves(stored: list[Stored]) -> Weight:
                weight: Any = parameter.make(stored)
                n = len(weight if isinstance(weight, torch.Tensor) else weight.codes)
                what = f"{self.file.path}: {parameter.entries[0]}"
                return part(weight, pairs_to_halves(n, count, what))

            return Parameter(parameter.entries, in_halves)
        added = self.architecture.norms
        if added and name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
            return Parameter(parameter.entries, lambda stored: dense(stored[0]) - added)
        return parameter

    def single_experts(self) -> Iterator[tuple[str, Parameter]]:
        """Old files have a tensor for each expert: `blk.0.ffn_down.3.weight`."""
        for entry in self.file.entries:
            if match := re.match(r"blk\.(\d+)\.ffn_(gate|up|down)\.(\d+)\.weight$", entry):
                layer, which, expert = match.groups()
                stack = f"model.layers.{layer}.mlp.experts"
                if f"{stack}.gate_up_proj" in self.shapes:
                    yield f"{stack}.{expert}.{which}_proj.weight", Parameter((entry,))

    def refuse_others(self) -> None:
        """Raises GqcError on tensors that nothing reads; only frequencies may be beside."""
        used = {entry for p in self.parameters.values() for entry in p.entries}
        others = [e for e in self.file.entries if e not in used and not self.is_spare(e, used)]
        if others:
            listed = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if others[5:] else "")
            raise GqcError(
                f"{self.file.path}: {listed}: the model {self.config['model_type']} has no "
                "parameter for that, and would compute something else without a word; " + REMEDY
            )

    def is_spare(self, entry: str, used: set[str]) -> bool:
        """Whether a tensor adds nothing to the model: frequencies, which the config has; blocks
        that predict further tokens; what is there in another form; scales of weights in NVFP4."""
        if entry in FACTORS or ".attn_rot_embd" in entry:
            return True
        if is_block(entry) and int(entry.split(".")[1]) >= self.config["num_hidden_layers"]:
            return True
        if entry.endswith((".attn_k_b.weight", ".attn_v_b.weight")):
            return f"{entry.rpartition('_')[0][:-1]}kv_b.weight" in used
        weight = f"{entry.rpartition('.')[0]}.weight"
        if entry.endswith((".scale", ".input_scale")) and weight in used:
            return self.file.entries[weight].type == NVFP4
        return False


NVFP4 = 40
"""The number of the type whose weights have a scale for the whole tensor in a tensor beside."""

Layout = Callable[[Names, str], "Parameter | None"]


def plain(names: Names, name: str) -> Parameter | None:
    entry = names.entry(name)
    return None if entry is None else Parameter((entry,))


def latent_keys_and_values(names: Names, name: str) -> Parameter | None:
    """kv_b [heads · (nope + v), latent]; newer files have k_b [heads, latent, nope] and v_b
    [heads, v, latent], for products with latent vectors."""
    k, v = names.block(name, "attn_k_b.weight"), names.block(name, "attn_v_b.weight")
    if names.entry(name) is not None or k is None or v is None:
        return plain(names, name)
    why = "weights of keys from latent vectors are stored transposed"
    return Parameter(
        (k, v),
        lambda s: torch.cat([decoded(s[0], why).transpose(1, 2), decoded(s[1], why)], 1).flatten(
            0, 1
        ),
    )


def states(names: Names, name: str) -> Parameter | None:
    """q, k, v and z by turns for each head of keys; newer files have all of q, k and v, and z."""
    qkv, z = names.block(name, "attn_qkv.weight"), names.block(name, "attn_gate.weight")
    if qkv is None or z is None:
        return plain(names, name)
    heads, key = (names.config[f"linear_{x}"] for x in ("num_key_heads", "key_head_dim"))
    value = names.config["linear_num_value_heads"] // heads * names.config["linear_value_head_dim"]
    rows = torch.arange(2 * heads * (key + value))
    split = rows.split([heads * key, heads * key, heads * value, heads * value])
    order = torch.cat([rows.view(heads, -1) for rows in split], 1).flatten()
    return Parameter((qkv, z), lambda stored: part(joined(stored), order))


def with_change(change: Callable[[torch.Tensor], torch.Tensor]) -> Layout:
    """One tensor, which the dense model has in another form."""

    def layout(names: Names, name: str) -> Parameter | None:
        entry = names.entry(name)
        return None if entry is None else Parameter((entry,), lambda s: change(dense(s[0])))

    return layout


def of_block(*tensors: str) -> Layout:
    """The tensor of the block that the gguf package gives no module for."""

    def layout(names: Names, name: str) -> Parameter | None:
        found = (names.block(name, tensor) for tensor in tensors)
        entry = next((entry for entry in found if entry is not None), None)
        return None if entry is None else Parameter((entry,))

    return layout


def gate_and_up(ending: str) -> Layout:
    """Gates and others of all experts: apart as files have them, or their rows by turns."""

    def layout(names: Names, name: str) -> Parameter | None:
        fused = names.block(name, f"ffn_gate_up_exps.{ending}")
        if not names.architecture.interleaved:
            return None if fused is None else Parameter((fused,))
        stacks = [names.block(name, f"ffn_{x}_exps.{ending}") for x in ("gate", "up")]
        if stacks[0] is None or stacks[1] is None:
            return None
        if ending == "bias":
            return Parameter((stacks[0], stacks[1]), alternating)
        return Parameter((stacks[0], stacks[1]), lambda stored: turned(alternating(stored)))

    return layout


def down(names: Names, name: str) -> Parameter | None:
    """The last layer of all experts, which a model of interleaved gates has transposed."""
    parameter = plain(names, name)
    if parameter is None or not names.architecture.interleaved:
        return parameter
    return Parameter(parameter.entries, lambda stored: turned(stored[0]))


def rows_of_qkv(names: Names, name: str) -> Parameter | None:
    """One of q, k and v, which some files have in one tensor."""
    if (parameter := plain(names, name)) is not None:
        return parameter
    leaf = name.rpartition(".")[2]
    entry = names.block(name, f"attn_qkv.{leaf}")
    if entry is None:
        return zeros(names, name)
    start = 0
    for letter in "qkv":
        other = re.sub(r"\.[qkv]_proj\.", f".{letter}_proj.", name)
        count = names.shapes[other][0]
        if other == name:
            break
        start += count
    rows = torch.arange(start, start + count)
    return Parameter((entry,), lambda stored: part(stored[0], rows))


def one_of_qkv(names: Names, name: str) -> Parameter | None:
    """q, k and v in one parameter, which some files have apart."""
    if (parameter := plain(names, name)) is not None:
        return parameter
    leaf = name.rpartition(".")[2]
    parts = [names.block(name, f"attn_{x}.{leaf}") for x in "qkv"]
    if any(entry is None for entry in parts):
        return None
    return Parameter(tuple(filter(None, parts)), joined)


def zeros(names: Names, name: str) -> Parameter | None:
    """A bias that the model has with others, of any block, where the file has only these: it adds
    nothing."""
    if (parameter := plain(names, name)) is not None or not name.endswith(".bias"):
        return parameter
    others = FLAGS["attention_bias"] if ".self_attn." in name else FLAGS["mlp_bias"]
    if not any(has(names.file, other) for other in others):
        return None
    shape = names.shapes[name]
    return Parameter((), lambda stored: torch.zeros(shape))


LAYOUTS: dict[str, Layout] = {
    r"\.self_attn\.[qkv]_proj\.(weight|bias)$": rows_of_qkv,
    r"\.self_attn\.qkv_proj\.(weight|bias)$": one_of_qkv,
    r"\.(o|gate|up|down)_proj\.bias$": zeros,
    r"\.self_attn\.kv_b_proj\.weight$": latent_keys_and_values,
    r"\.linear_attn\.in_proj_qkvz\.weight$": states,
    r"\.linear_attn\.conv1d\.weight$": with_change(lambda t: t.unsqueeze(1)),
    r"\.linear_attn\.A_log$": with_change(lambda t: torch.log(-t)),
    r"\.linear_attn\.dt_bias$": of_block("ssm_dt.bias", "ssm_dt"),
    r"\.shared_expert_gate\.weight$": with_change(lambda t: t.view(1, -1)),
    r"\.gate\.e_score_correction_bias$": of_block("exp_probs_b.bias", "exp_probs_b"),
    r"\.experts\.gate_up_proj$": gate_and_up("weight"),
    r"\.experts\.gate_up_proj_bias$": gate_and_up("bias"),
    r"\.experts\.down_proj$": down,
    r"\.experts\.down_proj_bias$": of_block("ffn_down_exps.bias"),
}
"""By the ends of their names, parameters that are not one tensor by the name of their module."""


@lru_cache(8)
def tensor_names(prefix: str, layers: int) -> Callable[[str], str | None]:
    """What the gguf package calls the tensors of a module, by the module's name."""
    import gguf

    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    if prefix not in known:
        raise GqcError(f"this gguf package has no {prefix}: pip install -U gguf")
    return gguf.get_tensor_name_map(known[prefix], layers).get_name


@lru_cache(8)
def shapes_of(config: str) -> dict[str, tuple[int, ...]]:
    """The parameters of transformers' model of a config (JSON), and their shapes."""
    import transformers

    settings = json.loads(config)
    try:
        made = transformers.AutoConfig.for_model(**settings)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(made)
    except Exception as error:  # whatever the library does with sizes that do not fit
        raise GqcError(f"no {settings['model_type']} has these hyperparameters: {error}") from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
