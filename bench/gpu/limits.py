"""The least time that a step of a model can take on a card, from what the card was measured to do. Pure arithmetic.

    projections   max(bytes of the weights that are read / bandwidth, operations / rate of products)
    attention     max(bytes of K and V / bandwidth, operations / rate of attention)

and the step takes both, one after the other: a layer's projections wait for its attention. Norms, activations, sampling and
launches are free. Weights are read once a step, K and V once a row and step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from inference_stack.models.config import ModelConfig

ATTENTION_SHARE = 0.7
"""Attention's rate as a share of that of products: what the best published kernels reach on Hopper; softmax costs the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What one card was measured to do: bytes a second read from memory, operations a second of large bf16 products."""

    bandwidth: float
    products: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Bytes of one parameter of a projection, of the output matrix, and of one number of K or V."""

    projection: float = 2.0
    head: float = 2.0
    kv: float = 2.0


def form_of(quantise: str | None, kv_bytes: float = 2.0) -> Form:
    """Of bf16 (None), "float8", or a group-quantised form such as "w4g128", scales and zeros in fp16 included."""
    if quantise is None:
        return Form(kv=kv_bytes)
    if quantise == "float8":
        return Form(projection=1.0, head=1.0, kv=kv_bytes)
    bits, _, group = quantise.removeprefix("w").partition("g")
    beside = (4 if bits == "4" else 2) / int(group)
    return Form(projection=int(bits) / 8 + beside, kv=kv_bytes)


@dataclass(frozen=True, slots=True)
class Row:
    """One request in one step: so many queries, the last of which sees `context` tokens; `sampled` of them need logits."""

    queries: int
    context: int
    sampled: int = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """A model's least times."""

    config: ModelConfig
    form: Form
    ceilings: Ceilings

    def step(self, rows: Iterable[Row]) -> float:
        """Seconds of one step."""
        rows = tuple(rows)
        return self.projections(sum(row.queries for row in rows), sum(row.sampled for row in rows)) + self.attention(
            rows
        )

    def projections(self, tokens: int, sampled: int) -> float:
        """Seconds of all products of a step with so many tokens."""
        one = self.config
        shared, expert = self._shared(), self._expert()
        routed = one.experts.chosen if one.experts else 0
        head = one.vocab_size * one.hidden_size
        read = (shared + expert * self._touched(tokens)) * self.form.projection + (
            head * self.form.head if sampled else 0
        )
        operations = 2 * (shared + expert * routed * self._mixed_layers) * tokens + 2 * head * sampled
        return max(read / self.ceilings.bandwidth, operations / self.ceilings.products)

    def attention(self, rows: Iterable[Row]) -> float:
        """Seconds of attention in all layers of a step."""
        one, total = self.config, 0.0
        kinds = Counter(one.windows)
        for row in rows:
            for window, layers in kinds.items():
                kept = min(row.context, (window or row.context) + row.queries - 1)
                read = 2 * one.kv_heads * one.head_dim * self.form.kv * kept
                operations = 4 * one.heads * one.head_dim * seen(row, window)
                rate = self.ceilings.products * ATTENTION_SHARE
                total += layers * max(read / self.ceilings.bandwidth, operations / rate)
        return total

    def prompt(self, tokens: int, chunk: int) -> float:
        """Seconds of a prompt alone, computed in chunks."""
        starts = range(0, tokens, chunk)
        rows = [
            Row(min(chunk, tokens - start), min(start + chunk, tokens), int(start + chunk >= tokens))
            for start in starts
        ]
        return sum(self.step([row]) for row in rows)

    def decode_rate(self, batch: int, context: int) -> float:
        """Tokens a second of so many requests with so much context each."""
        return batch / self.step([Row(1, context)] * batch)

    @property
    def _mixed_layers(self) -> int:
        return self.config.layers - len(self.config.experts.dense_layers) if self.config.experts else 0

    def _shared(self) -> int:
        """Parameters that every token goes through, in all layers: attention, routers, MLPs without experts."""
        one = self.config
        attention = one.hidden_size * one.head_dim * (2 * one.heads + 2 * one.kv_heads)
        mixed = self._mixed_layers
        dense = (one.layers - mixed) * 3 * one.hidden_size * one.intermediate_size
        routers = mixed * one.hidden_size * one.experts.count if one.experts else 0
        return one.layers * attention + dense + routers

    def _expert(self) -> int:
        return 3 * self.config.hidden_size * self.config.experts.width if self.config.experts else 0

    def _touched(self, tokens: int) -> float:
        """Experts, summed over layers, that have a token: as many as are to be expected when all are equally likely."""
        experts = self.config.experts
        if experts is None:
            return 0.0
        missed = (1 - experts.chosen / experts.count) ** tokens
        return self._mixed_layers * experts.count * (1 - missed)


def seen(row: Row, window: int | None) -> int:
    """Pairs of a query and a key that it sees, over the queries of a row."""
    first = row.context - row.queries + 1
    everything = row.queries * (first + row.context) // 2
    if window is None or row.context <= window:
        return everything
    short = max(0, min(row.queries, window - first + 1))
    return short * (2 * first + short - 1) // 2 + (row.queries - short) * window
