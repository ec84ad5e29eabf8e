"""Quantize the weights of linears by scheme: a symbolic `gq.qcast` before each matmul."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from xdsl.context import Context
from xdsl.dialects.builtin import ArrayAttr, ModuleOp
from xdsl.ir import Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq
from gqc.dialects.fx import CallOp
from gqc.dialects.gq_channels import ChannelOp
from gqc.errors import GqcError
from gqc.frontend.routers import ROUTERS
from gqc.legality import ACTIVATIONS, unread
from gqc.passes.helpers import count, layer_name, matmuls, weight_of, written_buffers
from gqc.quantizers import CALIBRATED
from gqc.schemes import GROUPS, KEEP, Patterns, Scheme, parse_scheme

HEAD = "*lm_head"
CHOOSES = "a router of experts is kept by default: a pattern that ends in its name quantizes it"

Casts = dict[tuple[SSAValue, Scheme], SSAValue]
"""The quantized form of each weight under each scheme."""


@dataclass(frozen=True)
class QuantizeWeights(ModulePass):
    """grouped → grouped. Entries `pattern=scheme`, first match first; `keep` leaves a layer.

    The output head is kept unless `lm_head` is set or a pattern is its very name, whether it is
    called so or shares its weight with the embedding; a router of experts, unless a pattern ends in
    its name. Buffers, what the model writes, and layers of float64 are always kept; what has a
    decision or a quantized weight is passed over. Raises GqcError, before anything is changed, that
    names every pattern no layer matches and every layer whose K its group does not divide.
    """

    name = "quantize-weights"

    schemes: tuple[str, ...]
    lm_head: bool = False

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        patterns = Patterns(self.schemes)
        layers = [layer_name(matmul) for matmul in matmuls(op)]
        refuse_unknown_patterns(patterns, layers, routers_apart(op))
        written = written_buffers(op)
        kept: list[tuple[gq.MatmulTOp, str]] = []
        chosen: list[tuple[gq.MatmulTOp, Scheme]] = []
        for matmul in matmuls(op):
            if matmul.decision is not None or gq.block_scaled(matmul.weight) is not None:
                continue
            pattern, scheme = patterns.match(layer_name(matmul)) or (None, KEEP)
            reason = self.reason_to_keep(matmul, pattern, scheme, written)
            if reason is None:
                chosen.append((matmul, parse_scheme(scheme)))
            else:
                kept.append((matmul, reason))
        refuse_ragged_groups(
            [(layer_name(m), gq.tensor_shape(m.weight), scheme) for m, scheme in chosen]
        )
        refuse_calibrated(chosen)
        types = {scheme: scheme.type() for scheme in {scheme for _, scheme in chosen}}
        for matmul, reason in kept:
            matmul.decision = gq.DecisionAttr("kept", reason)
        casts: Casts = {}
        for matmul, scheme in chosen:
            quantize(matmul, scheme, types[scheme], casts)

    def reason_to_keep(
        self, matmul: gq.MatmulTOp, pattern: str | None, scheme: str, written: set[str]
    ) -> str | None:
        """Why a layer stays as it is, or None if it is to be quantized."""
        if pattern is None:
            return "no scheme names this layer"
        if scheme == KEEP:
            return f"ignored by pattern {pattern}"
        if (activation := str(gq.element_type(matmul.x))) not in ACTIVATIONS:
            return unread(activation)
        weight = weight_of(matmul.weight)
        if weight is not None and weight.key in written:
            return "the model writes it"
        if weight is not None and "buffer" in weight.attributes:
            return "a buffer, not a parameter"
        name = layer_name(matmul)
        if weight is not None and "router" in weight.attributes and not ends_in(pattern, name):
            return CHOOSES
        if self.lm_head or pattern == name:
            return None
        if fnmatchcase(name, HEAD):
            return "the output head is kept by default"
        return shared_with(matmul)


def ends_in(pattern: str, name: str) -> bool:
    """Whether a pattern is the last part of a layer's name, after anything."""
    return re.split(r"[.*]", pattern)[-1] == name.rpartition(".")[2]


def routers_apart(module: ModuleOp) -> list[str]:
    """Names of the routers that are no linear layers by themselves."""
    said = module.attributes.get(ROUTERS)
    return [name.data for name in said] if isinstance(said, ArrayAttr) else []


def refuse_unknown_patterns(
    patterns: Patterns, names: list[str], routers: Sequence[str] = ()
) -> None:
    """Raise one error for all patterns that match none of the layers, if there are layers.

    routers: what may be ignored by name, but not quantized, being no layers by themselves.
    """
    unknown = [p for p in patterns.unmatched(names) if not fnmatch.filter(routers, p)]
    asked = [p for p, scheme in patterns.entries if scheme != KEEP]
    if alone := [p for p in patterns.unmatched(names) if p in asked and p not in unknown]:
        raise GqcError(
            f"{', '.join(map(repr, alone))}: only routers of experts match, and these multiply by "
            "themselves, being no linear layers: give example inputs, and the model is captured "
            "whole"
        )
    if unknown and names:
        examples = ", ".join(names[:3])
        raise GqcError(
            f"no linear layer matches {', '.join(map(repr, unknown))}: a pattern is a layer's name "
            f"or a wildcard; the {count(len(names), 'layer')} {'are' if len(names) > 1 else 'is'} "
            f"{examples}{', …' if len(names) > 3 else ''}"
        )


def shared_with(matmul: gq.MatmulTOp) -> str | None:
    """What else than a matmul reads the weight, here or outside the IR, in words; None if nothing
    does."""
    weight = weight_of(matmul.weight)
    if weight is None:
        return None
    forms = gq.MatmulTOp | gq.TransposeOp | gq.QcastOp | ChannelOp
    readers = (use.operation for use in weight.result.uses)
    others = [reader for reader in readers if not isinstance(reader, forms)]
    if others:
        names = {r.callee.data if isinstance(r, CallOp) else r.name for r in others}
        return f"its weight is shared with {', '.join(sorted(names))}"
    return "its weight is shared with another operation" if "shared" in weight.attributes else None


def refuse_ragged_groups(layers: list[tuple[str, tuple[int, ...], Scheme]]) -> None:
    """Raise one error for all layers whose K a group, of weights or inputs, does not divide.

    layers: the name of each, the shape [N, K] of its weight, and its scheme.
    """
    ragged = dict.fromkeys(
        (name, shape, each.group)
        for name, shape, scheme in layers
        for each in (scheme, scheme.activation)
        if each and each.group and shape[1] % each.group
    )
    if not ragged:
        return
    lines = [f"  {name}: weight {list(s)}, group {g}" for name, s, g in ragged]
    fits = [g for g in GROUPS if all(shape[1] % g == 0 for _, shape, _ in ragged)]
    remedy = f"a group of {fits[-1]} divides all of them" if fits else "no usual group divides all"
    raise GqcError(
        f"K (the second dimension) is not divisible by the group in {count(len(ragged), 'layer')}:"
        "\n"
        + "\n".join(lines)
        + f"\n{remedy}; or give these layers a scheme of their own, `row` groups, or ignore them"
    )


def refuse_calibrated(layers: list[tuple[gq.MatmulTOp, Scheme]]) -> None:
    """Raise one error for all layers whose schemes say more than a cast does: `gqc.quantize` comes
    before, of a model and its inputs."""
    names = {
        layer_name(matmul): None
        for matmul, scheme in layers
        if scheme.transforms or scheme.quantizer in CALIBRATED
    }
    if names:
        raise GqcError(
            f"{', '.join(names)}: the scheme has transforms or a quantizer that need calibration: "
            "compile the nn.Module itself with calibration=, inputs of the model; layers that are "
            "called as functions need a scheme without"
        )


def quantize(matmul: gq.MatmulTOp, scheme: Scheme, type_: gq.BlockScaledType, casts: Casts) -> None:
    """Make the matmul read its quantized weight; one weight under one scheme has one cast."""
    weight = matmul.weight
    if (weight, scheme) not in casts:
        cast = gq.QcastOp(weight, scheme.quantizer, scheme.scale_rule, type_)
        cast.location = matmul.location
        cast.result.name_hint = "wq"
        assert isinstance(weight.owner, Operation)
        Rewriter.insert_op(cast, InsertPoint.after(weight.owner))
        casts[weight, scheme] = cast.result
    matmul.operands[1] = casts[weight, scheme]
