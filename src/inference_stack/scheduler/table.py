"""The slot table: what changes every step, as columns, one entry per slot; and the slots themselves, with their fences.

    computed   tokens whose KV is computed, or will be by steps in flight     ┐ due = min(total, limit - 1) - computed
    total      tokens that exist, or that steps in flight will sample         ┘
    known      tokens that exist; total - known are pending (placeholders)
    limit      the length at which the completion ends; the last token's KV is never needed
    capacity   tokens that the block tables have room for
    published  blocks offered to the prefix index
    plain      the request in the slot expects tokens and nothing else: the fast path of results
    recent     the latest tokens that its request has not been given yet, at most a block of them, by position modulo 16
    ids, attempts   who is in the slot

Knows nothing of requests. A slot that was released keeps its columns until it is assigned again, so that late results of
steps in flight may still write there without harm.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np

from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.core.step import IntArray

ROW_BYTES: Final = 4 * BLOCK_TOKENS


def unroll(row: bytes, start: int, end: int) -> bytes:
    """Tokens `start` … `end`-1, packed, from a row that holds the latest 16 by position modulo 16."""
    first = 4 * (start % BLOCK_TOKENS)
    return (row + row)[first : first + 4 * (end - start)]


class SlotTable:
    """Columns of `size` slots."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.computed, self.known, self.total, self.limit, self.capacity, self.published = np.zeros((6, size), np.int32)
        self.plain = np.zeros(size, np.bool_)
        self.recent = np.zeros((size, BLOCK_TOKENS), np.int32)
        self._recent_flat = self.recent.reshape(-1)
        self.ids = [""] * size
        self.attempts = [0] * size
        self._free = list(range(size - 1, -1, -1))
        self._fenced: deque[tuple[int, int]] = deque()
        self._released: list[int] = []

    @property
    def free(self) -> int:
        """Slots that may be assigned now."""
        return len(self._free)

    @property
    def fenced(self) -> int:
        """Slots that become free when steps in flight have retired."""
        return len(self._fenced)

    @property
    def untold(self) -> bool:
        """Whether slots were released that no plan has told of yet."""
        return bool(self._released)

    def assign(
        self,
        request_id: str,
        attempt: int,
        *,
        known: int,
        computed: int,
        limit: int,
        capacity: int,
        published: int,
        plain: bool,
    ) -> int:
        """A free slot with fresh columns."""
        slot = self._free.pop()
        self.ids[slot], self.attempts[slot] = request_id, attempt
        self.known[slot], self.computed[slot], self.limit[slot] = known, computed, limit
        self.capacity[slot], self.published[slot] = capacity, published
        self.total[slot], self.plain[slot] = known, plain
        return slot

    def release(self, slot: int, fence: int | None) -> None:
        """The slot may be assigned again when step `fence` has retired (None: at once)."""
        self._released.append(slot)
        self.plain[slot] = False
        if fence is None:
            self._free.append(slot)
        else:
            self._fenced.append((fence, slot))

    def retire(self, step: int) -> None:
        """Step `step` has retired."""
        while self._fenced and self._fenced[0][0] <= step:
            self._free.append(self._fenced.popleft()[1])

    def take_released(self, assigned: set[int]) -> tuple[int, ...]:
        """Slots to tell the workers to forget, once; those assigned again in the same plan are simply overwritten."""
        released = tuple(slot for slot in self._released if slot not in assigned)
        self._released.clear()
        return released

    def rows(self, slots: IntArray) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """computed, total, limit and capacity of these slots, as copies."""
        return self.computed.take(slots), self.total.take(slots), self.limit.take(slots), self.capacity.take(slots)

    def pending(self, slots: IntArray) -> IntArray:
        """Tokens that steps in flight will sample for these slots."""
        return self.total.take(slots) - self.known.take(slots)

    def launch(self, slots: IntArray, end: IntArray, samples: IntArray) -> None:
        """A step is in flight that computes these slots up to position `end` and samples so many tokens each."""
        self.computed[slots] = end
        self.total[slots] += samples

    def keep(self, slots: IntArray, known: IntArray, tokens: IntArray) -> None:
        """The last of the `known` tokens of each of these slots."""
        self._recent_flat[slots * BLOCK_TOKENS + ((known - 1) & (BLOCK_TOKENS - 1))] = tokens

    def kept_by(self, slots: IntArray) -> tuple[list[int], list[bytes]]:
        """Known tokens of each of these slots, and its row of `recent`, packed: `unroll` reads it."""
        rows = self.recent.take(slots, axis=0).tobytes()
        return self.known.take(slots).tolist(), [rows[at : at + ROW_BYTES] for at in range(0, len(rows), ROW_BYTES)]

    def settle(self, slots: IntArray, samples: IntArray, counts: IntArray) -> tuple[IntArray, IntArray]:
        """That step's results: `counts` of the `samples` are real. Returns how many tokens are known, and how many fell
        short; the KV of the latter is void."""
        short: IntArray = samples - counts
        known = self.known.take(slots) + counts
        self.known[slots] = known
        if np.count_nonzero(short):
            self.total[slots] -= short
            self.computed[slots] -= short
        return known, short
