"""Layers that a quantization config treats otherwise than the rest, by patterns of their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gqc.checkpoints.files import option
from gqc.checkpoints.reader import Layer
from gqc.errors import GqcError


class Exceptions:
    """The configs of layers, as GPTQModel's `dynamic` says them: the first pattern that matches
    the start of a name counts. A pattern after `-:` is of layers that stay dense.
    """

    def __init__(self, quantization: Mapping[str, Any]):
        self.base = quantization
        self.configs: list[tuple[re.Pattern, Mapping[str, Any] | None]] = []
        for key, changes in option(quantization, "dynamic", dict, {}).items():
            pattern = pattern_of(key.removeprefix("+:").removeprefix("-:"))
            if not key.startswith("-:") and not isinstance(changes, dict):
                raise GqcError(f"quantization config: dynamic {key!r} is {changes!r}, no object")
            config = None if key.startswith("-:") else {**quantization, **changes}
            self.configs.append((pattern, config))

    def config_of(self, layer: Layer, part: str) -> Mapping[str, Any]:
        """The config of a quantized layer. Raises GqcError, about that part, if it says dense."""
        for pattern, config in self.configs:
            if pattern.match(layer.name):
                if config is None:
                    text = f"is there, but dynamic {pattern.pattern!r} leaves the layer dense"
                    raise layer.error(part, text)
                return config
        return self.base


def pattern_of(text: str) -> re.Pattern:
    """A regular expression of the config. Raises GqcError on what is none."""
    try:
        if len(text) > 1024:
            raise GqcError(f"quantization config: a pattern of {len(text)} characters is too long")
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise GqcError(f"quantization config: pattern {text!r}: {error}") from error
