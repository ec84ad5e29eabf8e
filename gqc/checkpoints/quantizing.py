"""A dense checkpoint whose weights are quantized as they are read, one at a time, in slices."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

import torch

from gqc.checkpoints.checkpoint import Checkpoint
from gqc.checkpoints.files import Spec
from gqc.checkpoints.linears import Kind, Linear, kinds
from gqc.checkpoints.source import Origin
from gqc.checkpoints.weights import Transposed, Weight
from gqc.checkpoints.write_compressed_tensors import fused_name
from gqc.checkpoints.writer import Form, Writer
from gqc.dialects.gq import BlockScaledType
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.formats.microscaling import nvfp4_tensor_scale
from gqc.formats.packing import slices
from gqc.passes.helpers import count
from gqc.passes.quantize_weights import HEAD, refuse_ragged_groups, refuse_unknown_patterns
from gqc.quantizers import QUANTIZERS, refuse_specials, underflow
from gqc.schemes import KEEP, Patterns, Scheme, SchemeLike, parse_scheme, scheme_list


class Quantizing:
    """A source of the weights of a dense checkpoint, quantized by scheme; an `Outlined` one.

    scheme, ignore, lm_head: as of `gqc.compile`; layers are called as in the model, a stack of
    experts as its parameter, which has one tensor scale in NVFP4. writer: the format that is
    written, which may have wishes about tensor scales.

    Raises GqcError, before any weight is read and naming all layers or patterns, on a checkpoint
    that is not dense, on schemes that need calibration, on patterns that match no layer, on a K
    that a group does not divide, and where nothing is left to quantize. Warns of parameters of
    three dimensions that stay dense.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        scheme: SchemeLike | Mapping[str, SchemeLike],
        ignore: Sequence[str] = (),
        lm_head: bool = False,
        writer: type[Writer] = Writer,
    ):
        if checkpoint.format != "dense":
            raise GqcError(
                f"{checkpoint.path} is quantized already ({checkpoint.format}): quantize the model "
                "that it was made of, or write it in another format by gqc.save"
            )
        self.checkpoint, self.writer = checkpoint, writer
        self.path, self.config = checkpoint.path, checkpoint.config
        self.specs: Mapping[str, Spec] = checkpoint.reader.tensors.specs  # pyright: ignore[reportAttributeAccessIssue]
        self.lm_head = lm_head
        self.chosen: dict[str, tuple[Linear, Scheme]] = {}
        """The weights that are quantized, and how."""
        self.kept: dict[str, str] = {}
        """Why the others are not."""
        self.choose(Patterns(scheme_list(scheme, ignore)))
        self.refuse()
        self.types = {scheme: scheme.type() for _, scheme in self.chosen.values()}
        self.tensor_scales: dict[str, torch.Tensor] = {}
        self.warn_of_experts()

    def choose(self, patterns: Patterns) -> None:
        """Choose what is done with each parameter. Raises GqcError on patterns that match none."""
        found = kinds(self.config, self.specs)
        layers = {
            name: kind.layer or layer_of(name)
            for name, kind in found.items()
            if isinstance(kind, Linear)
        }
        refuse_unknown_patterns(patterns, [*layers.values()])
        for name, kind in found.items():
            layer = layers.get(name, layer_of(name))
            pattern, scheme = patterns.match(layer) or (None, KEEP)
            reason = self.reason_to_keep(layer, kind, pattern, scheme)
            if reason is None and isinstance(kind, Linear):
                self.chosen[name] = kind, parse_scheme(scheme)
            else:
                self.kept[name] = reason or ""

    def reason_to_keep(
        self, layer: str, kind: Kind, pattern: str | None, scheme: str
    ) -> str | None:
        """Why a parameter stays as it is, or None if it is to be quantized."""
        if not isinstance(kind, Linear):
            return kind
        if pattern is None:
            return "no scheme names this layer"
        if scheme == KEEP:
            return f"ignored by pattern {pattern}"
        if not fnmatchcase(layer, HEAD):
            return None
        if self.config.get("tie_word_embeddings") is True:
            return "its weight is shared with the embedding"
        asked = self.lm_head or pattern == layer
        return None if asked else "the output head is kept by default"

    def refuse(self) -> None:
        """Raise GqcError on what cannot be quantized, before anything is."""
        schemes = dict.fromkeys(scheme for _, scheme in self.chosen.values())
        if calibrated := [
            str(scheme) for scheme in schemes if scheme.needs_calibration or scheme.transforms
        ]:
            raise GqcError(
                f"{'; '.join(calibrated)}: needs inputs to calibrate on, or changes other layers: "
                "quantize the model by gqc.quantize in Python, and write it by gqc.save"
            )
        chosen = self.chosen.items()
        refuse_ragged_groups(
            [(layer_of(n), linear.shape, scheme) for n, (linear, scheme) in chosen]
        )
        if self.lm_head and not any(fnmatchcase(layer_of(name), HEAD) for name in self.chosen):
            raise GqcError(
                "lm_head is to be quantized, but the files have none: it shares the embedding's "
                "weight, or a pattern keeps it"
            )
        if not self.chosen:
            reasons = dict.fromkeys(self.kept.values())
            raise GqcError(
                f"{self.path}: nothing to quantize; its parameters: {'; '.join(reasons)}"
            )

    def warn_of_experts(self) -> None:
        """Warn of parameters of three dimensions: they may be most of a model."""
        experts = [name for name in self.kept if len(self.specs[name].shape) == 3]
        total = sum(spec.bytes for spec in self.specs.values())
        share = sum(self.specs[name].bytes for name in experts) / max(total, 1)
        if experts:
            warnings.warn(
                f"{count(len(experts), 'parameter')} of three dimensions, such as experts' "
                f"({experts[0]} first), stay as they are: {share:.0%} of all bytes",
                stacklevel=4,
            )

    def names(self) -> list[str]:
        return self.checkpoint.names()

    def form(self, name: str) -> Form | None:
        if name not in self.chosen:
            return None
        linear, scheme = self.chosen[name]
        wrappers = (("Transposed", None),) if linear.transposed else ()
        origin = self.origin(name).method
        type_ = scheme.type(len(linear.stacked))
        return Form(type_, linear.stacked, wrappers, scheme.activation, origin)

    def read(self, name: str) -> Weight:
        if name not in self.chosen:
            return self.checkpoint.read(name)
        linear, scheme = self.chosen[name]
        type_, tensor_scale = self.types[scheme], self.tensor_scale(name)
        try:
            matrix = self.matrix(name)
            quantized = quantize_rows(matrix, scheme, type_, tensor_scale)
        except ValueError as error:
            raise GqcError(f"{name} {list(linear.stacked)}: {error}") from error
        if said := underflow(matrix, quantized):
            warnings.warn(f"{name}: {said}", stacklevel=2)
        if linear.experts:
            quantized = stacked(quantized, scheme.type(3), linear.experts)
        return Transposed(quantized) if linear.transposed else quantized

    def matrix(self, name: str) -> torch.Tensor:
        """The dense weight [N, K] of a linear layer, or of one expert after another [E·N, K]."""
        weight = self.checkpoint.read(name)
        assert isinstance(weight, torch.Tensor)
        weight = weight.transpose(-1, -2) if self.chosen[name][0].transposed else weight
        return weight.flatten(0, -2)

    def tensor_scale(self, name: str) -> torch.Tensor | None:
        """The tensor scale of a weight, and of those it shares it with; None without one."""
        scheme = self.chosen[name][1]
        if not scheme.tensor_scale:
            return None
        key = f"{fused_name(name, self.writer.fused)} {scheme}"
        if key not in self.tensor_scales:
            amax = torch.stack([self.amax(other) for other in self.sharing(name)])
            scale = nvfp4_tensor_scale(amax, self.types[scheme].format)
            self.tensor_scales[key] = self.writer.tensor_scale(scale)
        return self.tensor_scales[key]

    def sharing(self, name: str) -> list[str]:
        """Weights that share a tensor scale with one, itself among them."""
        layer = layer_of(name)
        before, _, leaf = layer.rpartition(".")
        group = next((group for group in self.writer.fused if leaf in group), (leaf,))
        near = [f"{before}.{each}".lstrip(".") + name.removeprefix(layer) for each in group]
        scheme = self.chosen[name][1]
        return [n for n in near if n in self.chosen and self.chosen[n][1] == scheme]

    def amax(self, name: str) -> torch.Tensor:
        """The greatest magnitude of a weight, in float32."""
        parts = [part.abs().amax().float() for part in slices(self.matrix(name))]
        return torch.stack(parts).amax()

    def origin(self, name: str) -> Origin:
        scheme = self.chosen[name][1]
        return Origin(f"{scheme.quantizer} {scheme.scale_rule}")

    def activation(self, name: str) -> Scheme | None:
        return self.chosen[name][1].activation if name in self.chosen else None

    def input_scale(self, name: str) -> None:
        return None

    def bytes_of(self, name: str) -> int:
        return self.specs[name].bytes

    def fingerprint(self) -> str:
        files = [(path.name, *stamp(path)) for path in {s.file: 0 for s in self.specs.values()}]
        chosen = {name: str(choice) for name, choice in self.chosen.items()}
        said = [version("gqc"), files, self.config, chosen, self.writer.__name__]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def layer_of(name: str) -> str:
    """Name of the module of a weight; of a stack's, its own."""
    return name.removesuffix(".weight")


def stacked(weight: BlockScaled, type_: BlockScaledType, experts: int) -> BlockScaled:
    """A weight [E·N, K] as a stack [E, N, K] of a type."""
    parts = (weight.codes, weight.scale, weight.zero)
    codes, scale, zero = (
        None if part is None else part.unflatten(0, (experts, -1)) for part in parts
    )
    assert codes is not None and scale is not None
    return BlockScaled(type_, codes, scale, zero, weight.tensor_scale)


def stamp(path: Path) -> tuple[int, int]:
    """Size of a file, and when it was changed."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def quantize_rows(
    weight: torch.Tensor,
    scheme: Scheme,
    type_: BlockScaledType,
    tensor_scale: torch.Tensor | None,
) -> BlockScaled:
    """Quantize a weight [N, K] some rows at a time, into what is made once.

    Blocks lie in rows, so that this is what the quantizer makes of the whole. Raises ValueError as
    it does.
    """
    refuse_specials(weight)
    quantizer = QUANTIZERS[scheme.quantizer]
    whole: BlockScaled | None = None
    first = 0
    for rows in slices(weight):
        part = quantizer(rows, type_, scheme.scale_rule, tensor_scale=tensor_scale)
        whole = whole or empty(part, len(weight))
        last = first + len(rows)
        whole.codes[first:last], whole.scale[first:last] = part.codes, part.scale
        if whole.zero is not None and part.zero is not None:
            whole.zero[first:last] = part.zero
        first = last
    if whole is None:
        raise ValueError("the weight is empty")
    return whole


def empty(part: BlockScaled, n: int) -> BlockScaled:
    """Room for N rows like those of a part."""
    codes, scale, zero = (
        None if each is None else each.new_empty(n, *each.shape[1:])
        for each in (part.codes, part.scale, part.zero)
    )
    assert codes is not None and scale is not None
    return BlockScaled(part.type, codes, scale, zero, part.tensor_scale)
