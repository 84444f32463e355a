"""Which node computes a request: the one that is predicted to emit its first token soonest.

    predicted wait = prompt tokens ahead of it and its own uncached ones, in that node's steps, beside what already decodes there;
                     behind a full node (of places, or of memory: it says who waits) also the time until there is room

Columns with one entry per node, so that a thousand nodes cost about what ten do. Knows neither clocks nor links: what it believes
of a node is what the node last reported, corrected by what was sent there since.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.core.stats import InstanceStats, StepTimeModel

UNTIMED_TOKEN_SECONDS: Final = 1e-4
"""A guess for nodes whose speed is not known yet: only that it is the same for all of them matters."""
MOST_NAMES: Final = 1 << 18
"""Block names whose holders are remembered."""

Column = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A decision: the node, the wait predicted for it, how many of the prompt's tokens it is believed to hold already, and the wait
    at the best other node (None: there was none)."""

    node: int
    predicted_seconds: float
    cached_tokens: int
    runner_up_seconds: float | None


class PrefixView:
    """Which nodes are believed to hold which blocks: those they were sent. The least recently sent is forgotten first."""

    def __init__(self, most: int = MOST_NAMES) -> None:
        self._most = most
        self._holders: OrderedDict[bytes, int] = OrderedDict()

    def held(self, names: Sequence[bytes], nodes: int) -> Column:
        """How many leading blocks of `names` each of `nodes` nodes holds, [nodes]."""
        found = np.zeros(nodes)
        holding = (1 << nodes) - 1
        for depth, name in enumerate(names):
            still = holding & self._holders.get(name, 0)
            _mark(found, holding & ~still, depth)
            holding = still
            if not holding:
                return found
        _mark(found, holding, len(names))
        return found

    def sent(self, names: Sequence[bytes], node: int) -> None:
        """A node will have computed these blocks."""
        for name in names:
            self._holders[name] = self._holders.pop(name, 0) | 1 << node
        while len(self._holders) > self._most:
            self._holders.popitem(last=False)

    def lost(self, node: int) -> None:
        """A node holds nothing any more."""
        mask = ~(1 << node)
        for name, holders in list(self._holders.items()):
            if holders & mask != holders:
                self._holders[name] = holders & mask


def _mark(found: Column, mask: int, depth: int) -> None:
    """Set the entries of a bit mask, low bit first. Zero needs no writing."""
    if not depth or not mask:
        return
    bits = np.frombuffer(mask.to_bytes((len(found) + 7) // 8, "little"), np.uint8)
    found[np.unpackbits(bits, bitorder="little")[: len(found)].astype(bool)] = depth


class Router:
    """Chooses among `nodes` nodes, numbered from 0. All are usable at first; none is known to be slow or busy."""

    def __init__(self, nodes: int, chunk_tokens: int) -> None:
        self._chunk = chunk_tokens
        self.prefixes = PrefixView()
        self.usable = np.ones(nodes, bool)
        self._base, self._per_row, self._per_context = np.zeros((3, nodes))
        self._per_token = np.full(nodes, UNTIMED_TOKEN_SECONDS)
        self._places = np.full(nodes, np.inf)
        self._requests, self._prompt, self._context = np.zeros((3, nodes))
        self._lengths = np.full(nodes, 1.0)
        self._queued = np.zeros(nodes)

    def add(self) -> int:
        """One node more, which is not usable yet; its number."""
        self.usable = np.append(self.usable, False)
        self._base, self._per_row, self._per_context = (
            np.append(column, 0.0) for column in (self._base, self._per_row, self._per_context)
        )
        self._per_token = np.append(self._per_token, UNTIMED_TOKEN_SECONDS)
        self._places = np.append(self._places, np.inf)
        self._requests, self._prompt, self._context, self._queued = (
            np.append(column, 0.0) for column in (self._requests, self._prompt, self._context, self._queued)
        )
        self._lengths = np.append(self._lengths, 1.0)
        return len(self.usable) - 1

    def expect(self, node: int, speed: StepTimeModel, max_running: int) -> None:
        """A node's speed and size, as far as they are known."""
        self._base[node], self._per_row[node] = speed.base, speed.per_row
        self._per_context[node] = speed.per_context
        self._per_token[node] = speed.per_token or UNTIMED_TOKEN_SECONDS
        self._places[node] = max_running

    def observe(self, node: int, stats: InstanceStats, max_running: int) -> None:
        """A node reports its speed, its size and who waits there."""
        self.expect(node, stats.step_time, max_running)
        self._queued[node] = stats.waiting

    def sent(self, node: int, prompt_tokens: int, uncached_tokens: int) -> None:
        """A request is on its way to a node."""
        self._requests[node] += 1
        self._prompt[node] += uncached_tokens
        self._context[node] += prompt_tokens

    def began(self, node: int, uncached_tokens: int) -> None:
        """A request that was sent there has emitted its first token: its prompt is no longer ahead of anyone."""
        self._prompt[node] -= uncached_tokens

    def ended(self, node: int, prompt_tokens: int, output_tokens: int) -> None:
        """A request that was sent there has left it; `began` was told before, or is now."""
        self._requests[node] -= 1
        self._context[node] -= prompt_tokens
        self._lengths[node] += 0.05 * (output_tokens - self._lengths[node])

    def withdrawn(self, node: int, prompt_tokens: int, uncached_tokens: int) -> None:
        """A request that was sent there has left it before its end, with so much of its prompt not computed."""
        self._requests[node] -= 1
        self._prompt[node] -= uncached_tokens
        self._context[node] -= prompt_tokens

    def close(self, node: int, forget: bool) -> None:
        """Nothing new is sent to a node until `back`; what it still runs is accounted for as ever. `forget` what it held."""
        self.usable[node] = False
        if forget:
            self._queued[node] = 0
            self.prefixes.lost(node)

    def reset(self, node: int) -> None:
        """The number is another node's from now on, which is not usable yet. Nothing was left at the one before."""
        self.close(node, forget=True)
        self._lengths[node] = 1.0

    def ahead(self, node: int) -> tuple[float, float, float]:
        """What is believed to be at a node: requests, tokens of prompts not computed yet, tokens of all their prompts."""
        return float(self._requests[node]), float(self._prompt[node]), float(self._context[node])

    def back(self, node: int) -> None:
        """A node may be used (again)."""
        self.usable[node] = True

    def choose(
        self, prompt_tokens: int, names: Sequence[bytes], among: npt.NDArray[np.bool_] | None = None
    ) -> Choice | None:
        """The node for a request whose full blocks are named `names`, of those usable (and `among` these, where given); None when
        there is none."""
        nodes = len(self.usable)
        usable = self.usable if among is None else self.usable & among
        held = np.zeros(nodes)
        if names:
            held = np.minimum(self.prefixes.held(names, nodes) * BLOCK_TOKENS, max(0, prompt_tokens - 1))
        waits = np.where(usable, self._waits(prompt_tokens - held), np.inf)
        node = int(waits.argmin()) if nodes else -1
        if node < 0 or not usable[node]:
            return None
        others = np.partition(waits, 1)[1] if nodes > 1 else np.inf
        return Choice(
            node=node,
            predicted_seconds=float(waits[node]),
            cached_tokens=int(held[node]),
            runner_up_seconds=float(others) if np.isfinite(others) else None,
        )

    def _waits(self, uncached: Column) -> Column:
        """Predicted seconds until the first token, per node."""
        rows = np.minimum(self._requests, self._places)
        step = self._base + self._per_row * rows + self._per_context * self._context + self._per_token * rows
        tokens = self._prompt + uncached
        seconds = tokens * self._per_token + np.ceil(tokens / self._chunk) * step
        places = np.where(np.isfinite(self._places), self._places, 1.0)
        behind = np.maximum(self._queued, self._requests + 1 - self._places)
        waits: Column = seconds + behind / places * self._lengths * step
        return waits
