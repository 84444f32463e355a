"""A plan under construction: decode rows as columns, prompt chunks one by one, block-table news; then a `StepPlan`.

Knows nothing of why a row was chosen.
"""

from __future__ import annotations

import numpy as np

from inference_stack.core.step import BlockDelta, IntArray, NewSlot, StepPlan, ints
from inference_stack.kv.manager import NO_BLOCK
from inference_stack.scheduler.entry import Entry
from inference_stack.scheduler.state import Flight, State

Columns = tuple[IntArray, IntArray, IntArray]
_NONE = ints()
_NO_NEWS = BlockDelta()


class Rows:
    """The rows of the step planned at `now`: decode rows first, then prompt chunks. `starved`: a running request found no
    memory."""

    def __init__(self, groups: int, now: float) -> None:
        self.now = now
        self.new: list[NewSlot] = []
        self.starved = False
        self._decoding: list[Entry] = []
        self._chunked: list[Entry] = []
        self._decode: Columns = (_NONE, _NONE, _NONE)
        self._drafts: IntArray | None = None
        self._chunks: tuple[list[int], list[int], list[int], list[int]] = ([], [], [], [])
        self._news: tuple[tuple[list[int], list[int], list[int]], ...] = tuple(([], [], []) for _ in range(groups))

    def __len__(self) -> int:
        return len(self._decode[0]) + len(self._chunks[0])

    def decode(
        self, entries: list[Entry], slots: IntArray, start: IntArray, tokens: IntArray, drafts: IntArray | None
    ) -> None:
        """Rows that compute the last known token, and drafts, and sample after each."""
        self._decoding = entries
        self._decode = (slots, start, tokens)
        self._drafts = drafts

    def chunk(self, entry: Entry, start: int, tokens: int) -> None:
        """A row of prompt. It samples when it reaches the last known token, unless no token is wanted."""
        self._chunked.append(entry)
        slots, starts, counts, samples = self._chunks
        slots.append(entry.slot)
        starts.append(start)
        counts.append(tokens)
        samples.append(int(start + tokens == len(entry.tokens) < entry.limit))

    @property
    def entries(self) -> list[Entry]:
        """The rows' requests."""
        return self._decoding + self._chunked

    def note_blocks(self, entry: Entry, start: int) -> None:
        """The worker learns the entry's block tables from index `start` on."""
        slot = entry.slot
        for table, (slots, index, blocks) in zip(entry.sequence.tables, self._news, strict=True):
            for position in range(start, len(table)):
                block = table[position]
                if block != NO_BLOCK:
                    slots.append(slot)
                    index.append(position)
                    blocks.append(block)

    def note_grown(self, slots: list[int], index: list[int], blocks: tuple[list[int], ...]) -> None:
        """The worker learns one new entry of each of these slots' block tables; `blocks` per KV group."""
        for taken, news in zip(blocks, self._news, strict=True):
            for known, fresh in zip(news, (slots, index, taken), strict=True):
                known += fresh

    def columns(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """slots, start, num_tokens, samples."""
        slots, start, tokens = self._decode
        if not self._chunks[0]:
            return slots, start, tokens, tokens
        chunks = ints(self._chunks)
        decode = (slots, start, tokens, tokens)
        slots, start, tokens, samples = map(np.concatenate, zip(decode, chunks, strict=True))
        return slots, start, tokens, samples

    def deltas(self) -> tuple[BlockDelta, ...]:
        """Block-table news, one per KV group."""
        return tuple(
            BlockDelta(slots=ints(slots), index=ints(index), blocks=ints(blocks)) if slots else _NO_NEWS
            for slots, index, blocks in self._news
        )

    def padded_drafts(self) -> IntArray | None:
        """Drafts of all rows, -1 where there are none."""
        if self._drafts is None:
            return None
        padding = np.full((len(self._chunks[0]), self._drafts.shape[1]), -1, np.int32)
        return np.concatenate((self._drafts, padding))


def launch(rows: Rows, state: State) -> StepPlan:
    """Make the plan, and book it as in flight."""
    slots, start, num_tokens, samples = rows.columns()
    step = state.next_step
    state.next_step += 1
    state.table.launch(slots, start + num_tokens, samples)
    flight = Flight(step=step, entries=rows.entries, slots=slots, start=start, num_tokens=num_tokens, samples=samples)
    state.flights.append(flight)
    state.kv.planned(step)
    return StepPlan(
        step=step,
        model=state.kv.model,
        slots=slots,
        start=start,
        num_tokens=num_tokens,
        samples=samples,
        new=tuple(rows.new),
        blocks=rows.deltas(),
        released=state.table.take_released({new.slot for new in rows.new}),
        drafts=rows.padded_drafts(),
    )
