"""Random models of shared, tied, chained, merged, split and transposed layers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (32, 64, 96, 128)


@dataclass(frozen=True)
class Step:
    """result = kind(source, other), by layers and an option."""

    kind: str
    source: str
    result: str
    layers: tuple[str, ...] = ()
    other: str = ""
    option: Any = None


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "square": lambda x: x.pow(2),
    "cube": lambda x: x.pow(3) * 0.1,
    "hardswish": F.hardswish,
    "softplus": F.softplus,
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "negative": torch.neg,
}
PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "swiglu": lambda a, b: F.silu(a) * b,
    "gate": lambda a, b: torch.sigmoid(b) * a,
    "divide": lambda a, b: a / (1 + b.abs()),
    "first": lambda a, b: a,
}
CASTS = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16}

LAYERS = {
    # The widths of each kind's layers: d is the input's, e, f and g are drawn; 2d is twice d.
    "linear": (("d", "e"),),
    "chain": (("d", "e"), ("e", "f")),
    "pair": (("d", "e"), ("d", "e")),
    "qkv": (("d", "e"), ("d", "f"), ("d", "g")),
    "gated": (("d", "e"), ("d", "e"), ("e", "d")),
    "activated": (("d", "e"),),
    "residual": (("d", "d"),),
    "scaled residual": (("d", "d"),),
    "product": (("d", "d"),),
    "split": (("d", "2d"),),
    "heads": (("half", "half"),),
    "transposed": (("d", "e"),),
    "permuted": (("d", "e"),),
    "function": (("d", "e"),),
    "stored transposed": (("d", "e"),),
    "last": (("d", "e"),),
    "softmax": (("d", "e"),),
    "expanded": (("d", "e"),),
    "where": (("d", "e"),),
    "mixed": (("d", "e"),),
    "shifted": (("d", "e"),),
    "dead": (("d", "e"),),
    "activation": (),
    "norm": (),
    "joined": (),
    "scaled": (),
    "cast": (),
}
KINDS = (*LAYERS, *["linear", "pair", "gated", "residual", "activated", "mixed"] * 2)


class RandomModel(nn.Module):
    """Steps drawn by `r`; layers are shared or tied now and then."""

    def __init__(self, r: random.Random, dtype: torch.dtype):
        super().__init__()
        self.layers: Any = nn.ModuleDict()
        self.norms, self.vectors = nn.ModuleDict(), nn.ParameterDict()
        self.r, self.width, self.steps = r, r.choice(WIDTHS), list[Step]()
        self.mixed: dict[str, torch.dtype] = {}
        self.live = [("x", self.width)]
        for number in range(r.randint(2, 7)):
            self.draw(r.choice(KINDS), f"t{number}")
        if not len(self.layers):
            self.draw("linear", "t")
        self.results = list(
            dict.fromkeys([self.live[-1][0], r.choice(self.live)[0]][: r.choice([1, 1, 2])])
        )
        self.to(dtype)
        for name, other in self.mixed.items():
            self.layers[name].to(other)

    def draw(self, kind: str, result: str) -> None:
        """Add a step of a kind."""
        r = self.r
        source, d = r.choice(self.live[-4:])
        widths = {"d": d, "2d": 2 * d, "half": d // 2, **{k: r.choice(WIDTHS) for k in "efg"}}
        if kind == "heads" and d % 64:
            return
        pairs = [(widths[i], widths[o]) for i, o in LAYERS[kind]]
        layers = tuple(self.layer(*pair, alone=kind == "mixed") for pair in pairs)
        other, option, width = "", None, pairs[-1][1] if pairs else d
        if kind in ("residual", "scaled residual", "product"):
            other = r.choice([name for name, w in self.live if w == d])
            option = r.choice([0.5, -1.0, 2.0])
        elif kind in ("pair", "split"):
            option, width = r.choice(list(PAIRS)), d if kind == "split" else width
            other = r.choice(["chunk", "split", "slice"])
        elif kind == "qkv":
            width = sum(o for _, o in pairs)
        elif kind in ("activated", "activation"):
            option = r.choice(list(ACTIVATIONS))
        elif kind == "heads":
            width = d
        elif kind == "joined":
            other, added = r.choice(self.live)
            width = d + added
        elif kind == "cast":
            option = r.choice(list(CASTS))
        elif kind == "norm":
            layers = (f"n{len(self.norms)}",)
            self.norms[layers[0]] = r.choice([nn.RMSNorm, nn.LayerNorm])(d)
        elif kind == "mixed":
            self.mixed[layers[0]] = r.choice([torch.float32, torch.bfloat16, torch.float16])
        if kind in ("scaled", "shifted"):
            option = f"v{len(self.vectors)}"
            self.vectors[option] = nn.Parameter(torch.rand(width) + 0.5)
        self.steps.append(Step(kind, source, result, layers, other, option))
        if kind not in ("last", "dead") and width <= 512 and width % 32 == 0:
            self.live.append((result, width))

    def layer(self, k: int, n: int, alone: bool) -> str:
        """Name of a layer, new or of the same widths, with a weight of its own or another's."""
        r, name = self.r, f"l{len(self.layers)}"
        layer = nn.Linear(k, n, bias=r.random() < 0.5)
        same = [
            other
            for other, each in self.layers.items()
            if (each.in_features, each.out_features) == (k, n) and other not in self.mixed
        ]
        if same and not alone:
            if r.random() < 0.25:
                return r.choice(same)
            if r.random() < 0.3:
                layer.weight = self.layers[r.choice(same)].weight
        self.layers[name] = layer
        return name

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = {"x": x}
        for step in self.steps:
            other = values.get(step.other)
            values[step.result] = FORWARD[step.kind](self, step, values[step.source], other)
        return tuple(values[name] for name in self.results)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        return super().__call__(x)

    def apply_layer(self, name: str, x: Tensor) -> Tensor:
        return self.layers[name](self.given(name, x))

    def given(self, name: str, x: Tensor, function: bool = False) -> Tensor:
        """What a layer is given, or a function of its weight; a `Reference` quantizes it."""
        return x


Forward = Callable[[RandomModel, Step, Tensor, Any], Tensor]


def linear(model: RandomModel, step: Step, x: Tensor, other: Any) -> Tensor:
    for name in step.layers:
        x = model.apply_layer(name, x)
    return x


def pair(model: RandomModel, step: Step, x: Tensor, other: Any) -> Tensor:
    a, b = (model.apply_layer(name, x) for name in step.layers)
    return PAIRS[step.option](a, b)


def qkv(model: RandomModel, step: Step, x: Tensor, other: Any) -> Tensor:
    return torch.cat([model.apply_layer(name, x) for name in step.layers], -1)


def gated(model: RandomModel, step: Step, x: Tensor, other: Any) -> Tensor:
    gate, up, down = step.layers
    y = F.silu(model.apply_layer(gate, x)) * model.apply_layer(up, x)
    return x + model.apply_layer(down, y)


def halves(model: RandomModel, step: Step, x: Tensor, other: Any) -> Tensor:
    y, d = linear(model, step, x, other), x.shape[-1]
    if step.other == "chunk":
        a, b = y.chunk(2, -1)
    else:
        a, b = y.split([d, d], -1) if step.other == "split" else (y[..., :d], y[..., d:])
    return PAIRS[step.option](a, b)


def heads(model: RandomModel, step: Step, x: Tensor, other: Any) -> Tensor:
    y = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
    return linear(model, step, y, other).reshape(x.shape)


def function(model: RandomModel, step: Step, x: Tensor, other: Any) -> Tensor:
    layer = model.layers[step.layers[0]]
    return F.linear(model.given(step.layers[0], x, function=True), layer.weight, layer.bias)


def stored_transposed(model: RandomModel, step: Step, x: Tensor, other: Any) -> Tensor:
    x = model.given(step.layers[0], x, function=True)
    return x @ model.layers[step.layers[0]].weight.t()


def mixed(model: RandomModel, step: Step, x: Tensor, other: Any) -> Tensor:
    y = linear(model, step, x.to(model.layers[step.layers[0]].weight.dtype), other)
    return y.to(x.dtype)


def where(model: RandomModel, step: Step, x: Tensor, other: Any) -> Tensor:
    y = linear(model, step, x, other)
    return torch.where(y > 0, y, y * 0.1)


def dead(model: RandomModel, step: Step, x: Tensor, other: Any) -> Tensor:
    return linear(model, step, x, other).float()


FORWARD: dict[str, Forward] = {
    **dict.fromkeys(("linear", "chain"), linear),
    "pair": pair,
    "qkv": qkv,
    "gated": gated,
    "activated": lambda m, s, x, o: ACTIVATIONS[s.option](linear(m, s, x, o)),
    "residual": lambda m, s, x, o: o + linear(m, s, x, o),
    "scaled residual": lambda m, s, x, o: torch.add(o, linear(m, s, x, o), alpha=s.option),
    "product": lambda m, s, x, o: o * linear(m, s, x, o),
    "split": halves,
    "heads": heads,
    "transposed": lambda m, s, x, o: linear(m, s, x.transpose(0, 1), o).transpose(0, 1),
    "permuted": lambda m, s, x, o: linear(m, s, x.permute(1, 0, 2).contiguous(), o).permute(
        1, 0, 2
    ),
    "function": function,
    "stored transposed": stored_transposed,
    "last": lambda m, s, x, o: linear(m, s, x, o)[:, -1:],
    "softmax": lambda m, s, x, o: torch.softmax(linear(m, s, x, o), -1) * 8,
    "expanded": lambda m, s, x, o: linear(m, s, x.mean(1, keepdim=True), o).expand(
        -1, x.shape[1], -1
    ),
    "where": where,
    "mixed": mixed,
    "shifted": lambda m, s, x, o: linear(m, s, x, o) + m.vectors[s.option],
    "dead": dead,
    "activation": lambda m, s, x, o: ACTIVATIONS[s.option](x),
    "norm": lambda m, s, x, o: m.norms[s.layers[0]](x),
    "joined": lambda m, s, x, o: torch.cat([x, o], -1),
    "scaled": lambda m, s, x, o: x * m.vectors[s.option],
    "cast": lambda m, s, x, o: x.to(CASTS[s.option]).to(x.dtype),
}
