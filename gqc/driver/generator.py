"""`gqc.generator`: a language model compiled whole, with a cache of what it has read, for one text.

The graph reads tokens [1, S] at a position. Caches are its buffers, and as one graph it has merged
linears and fused epilogues, which layers compiled one by one have not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from gqc.checkpoints.checkpoint import open_checkpoint
from gqc.driver.compile import compile
from gqc.driver.load import empty_model
from gqc.errors import GqcError

FIRST_DYNAMIC = 2
"""torch.compile takes the positions 0 and 1, as such sizes, for cases of their own."""


def generator(
    model: str | Path | nn.Module,
    *,
    length: int,
    dtype: torch.dtype | None = None,
    inductor: bool = True,
    **options: Any,
) -> Generator:
    """Compile a causal language model of transformers to generate one text at a time.

    model: a checkpoint, as of `gqc.load`, or the model itself, which `scheme=` quantizes. length:
    of prompt and answer together, in tokens, for which caches are allocated. dtype: as of
    `gqc.load`. inductor: compile what torch computes between gqc's kernels when the first token is
    decoded; that takes a C++ compiler and about half a minute, seconds where torch's cache has it.
    Without, tokens take several times as long. options: those of `gqc.compile`.

    Raises GqcError as `gqc.load` does, and on a model whose attention is not plain: no causal
    language model, sliding windows, sinks, or softcapped scores.
    """
    if not isinstance(model, nn.Module):
        source = open_checkpoint(model)
        model, options = empty_model(source, dtype), {"weights": source, **options}
    elif dtype is not None:
        raise GqcError("the model that is given has its dtype: convert it, or give no dtype")
    from gqc.frontend.with_cache import with_cache  # transformers is there by now

    examples = {"input_ids": torch.zeros(1, 7, dtype=torch.long), "start": 5}
    sizes = {"input_ids": {1: Dim.AUTO(min=1, max=length)}, "start": Dim.AUTO(min=0, max=length)}
    step = with_cache(model, length)
    graph = compile(step, examples, dynamic_shapes=sizes, **options)
    return Generator(graph, length, inductor, stop_tokens(model))


class Generator:
    """A compiled model and what it has read so far, one text."""

    def __init__(self, graph: Any, length: int, inductor: bool, stops: frozenset[int]):
        self.graph = graph
        self.length = length
        self.stops = stops
        self.start = 0
        self.step: Callable[..., Tensor] = graph
        self.warm = not inductor
        if inductor:
            from gqc.runtime.inductor import backend

            options: dict[str, Any] = {  # nothing replaces the graph's tensors
                "guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe
            }
            self.step = torch.compile(
                graph, backend=backend, fullgraph=True, dynamic=True, options=options
            )

    def reset(self) -> None:
        """Forget what was read."""
        self.start = 0

    @torch.inference_mode()
    def read(self, tokens: Sequence[int]) -> Tensor:
        """Logits [vocabulary] of the token after these, which follow what was read before.

        Raises GqcError if there are none, or more than there is room for.
        """
        if not 0 < len(tokens) <= self.length - self.start:
            raise GqcError(
                f"{len(tokens)} tokens after {self.start} do not fit into {self.length}: reset, or "
                "make the generator with a greater length"
            )
        inputs = {"input_ids": torch.tensor([tokens]), "start": self.start}
        once = len(tokens) > 1 or self.start < FIRST_DYNAMIC
        if not once and not self.warm:
            self.graph(**inputs)  # compiles kernels, which torch.compile would trace
            self.warm = True
        logits = (self.graph if once else self.step)(**inputs)
        self.start += len(tokens)
        return logits[0, -1]

    def generate(
        self,
        tokens: Sequence[int],
        max_new_tokens: int,
        choose: Callable[[Tensor], int] = lambda logits: int(logits.argmax()),
    ) -> Iterator[int]:
        """New tokens one by one, as `choose` takes them from the logits, to a stop token's end.

        `tokens` follow what was read before: reset for another text. Raises what `read` does.
        """
        for _ in range(max_new_tokens):
            token = choose(self.read(tokens))
            yield token
            if token in self.stops:
                return
            tokens = [token]

    def report(self) -> Any:
        """What became of each layer, as of any compiled model."""
        return self.graph.report()


def stop_tokens(model: Any) -> frozenset[int]:
    """Tokens that end a text, by the model's generation config."""
    stops = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return frozenset([stops] if isinstance(stops, int) else stops or ())
