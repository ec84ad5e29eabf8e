"""Quantize the weights of linears by scheme: a symbolic `gq.qcast` before each matmul."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq
from gqc.errors import GqcError
from gqc.passes.helpers import layer_name, matmuls, weight_of
from gqc.schemes import GROUPS, KEEP, Scheme, match_scheme, parse_scheme

HEAD = "*lm_head"

Casts = dict[tuple[SSAValue, Scheme], SSAValue]
"""The quantized form of each weight under each scheme."""


@dataclass(frozen=True)
class QuantizeWeights(ModulePass):
    """imported → grouped. Entries `pattern=scheme`, first match first; `keep` leaves a layer.

    The output head is kept unless `lm_head` is set, whether it is called so or shares its weight
    with the embedding. Raises GqcError, before anything is changed, that names every pattern no
    layer matches and every layer whose K its group does not divide.
    """

    name = "quantize-weights"

    schemes: tuple[str, ...]
    lm_head: bool = False

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        layers = {matmul: layer_name(matmul) for matmul in matmuls(op)}
        matches = {matmul: match_scheme(self.schemes, name) for matmul, name in layers.items()}
        self.refuse_unknown_patterns(list(layers.values()))
        kept: dict[gq.MatmulTOp, str] = {}
        chosen: dict[gq.MatmulTOp, Scheme] = {}
        for matmul, match in matches.items():
            reason = self.reason_to_keep(matmul, layers[matmul], match)
            if reason is not None:
                kept[matmul] = reason
            elif match is not None:
                chosen[matmul] = parse_scheme(match[1])
        refuse_ragged_groups({layers[m]: (m, s) for m, s in chosen.items()})
        types = {scheme: scheme.type() for scheme in chosen.values()}
        for matmul, reason in kept.items():
            matmul.decision = gq.DecisionAttr("kept", reason)
        casts: Casts = {}
        for matmul, scheme in chosen.items():
            quantize(matmul, scheme, types[scheme], casts)

    def refuse_unknown_patterns(self, names: list[str]) -> None:
        unknown = [e for e in self.schemes if not any(match_scheme((e,), name) for name in names)]
        if unknown and names:
            patterns = ", ".join(repr(entry.split("=")[0]) for entry in unknown)
            examples = ", ".join(names[:3])
            raise GqcError(
                f"no linear layer matches {patterns}: a pattern is a layer's name or a wildcard; "
                f"the {len(names)} layers are {examples}{', …' if len(names) > 3 else ''}"
            )

    def reason_to_keep(
        self, matmul: gq.MatmulTOp, name: str, match: tuple[str, str] | None
    ) -> str | None:
        """Why a layer stays as it is, or None if it is to be quantized."""
        if match is None:
            return "no scheme names this layer"
        pattern, scheme = match
        if scheme == KEEP:
            return f"ignored by pattern {pattern}"
        if not self.lm_head and match_scheme((f"{HEAD}={KEEP}",), name):
            return "the output head is kept by default"
        if not self.lm_head and is_shared(matmul):
            return "its weight is shared with another operation (a tied embedding)"
        return None


def is_shared(matmul: gq.MatmulTOp) -> bool:
    """Whether another operation than a matmul reads the weight."""
    weight = weight_of(matmul.weight)
    if weight is None:
        return False
    readers = (use.operation for use in weight.result.uses)
    return not all(isinstance(r, gq.MatmulTOp | gq.TransposeOp | gq.QcastOp) for r in readers)


def refuse_ragged_groups(layers: dict[str, tuple[gq.MatmulTOp, Scheme]]) -> None:
    """Raise one error for all layers whose K a group does not divide."""
    ragged = {
        name: (gq.tensor_shape(matmul.weight), scheme.group)
        for name, (matmul, scheme) in layers.items()
        if scheme.group and gq.tensor_shape(matmul.weight)[1] % scheme.group
    }
    if not ragged:
        return
    lines = [f"  {name}: weight {list(s)}, group {g}" for name, (s, g) in ragged.items()]
    fits = [g for g in GROUPS if all(shape[1] % g == 0 for shape, _ in ragged.values())]
    remedy = f"a group of {fits[-1]} divides all of them" if fits else "no usual group divides all"
    raise GqcError(
        f"{len(ragged)} layers have K (the second dimension) not divisible by their group:\n"
        + "\n".join(lines)
        + f"\n{remedy}; or give these layers a scheme of their own, `row` groups, or ignore them"
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
