"""A plan under construction: decode rows as columns, prompt chunks one by one, block-table news; then a `StepPlan`.

Knows nothing of why a row was chosen.
"""

from __future__ import annotations

import numpy as np

from inference_stack.core.step import BlockDelta, IntArray, NewSlot, StepPlan, ints
from inference_stack.kv.manager import NO_BLOCK
from inference_stack.scheduler.entry import Entry
from inference_stack.scheduler.state import Flight, State
from inference_stack.scheduler.table import SlotTable


class Rows:
    """The rows of one step: decode rows first, then prompt chunks. `starved`: a running request found no memory."""

    def __init__(self, groups: int) -> None:
        self.decode_slots = ints()
        self.decode_tokens = ints()
        self.drafts: IntArray | None = None
        self.new: list[NewSlot] = []
        self.starved = False
        self._chunk_slots: list[int] = []
        self._chunk_tokens: list[int] = []
        self._news: tuple[tuple[list[int], list[int], list[int]], ...] = tuple(([], [], []) for _ in range(groups))

    def __len__(self) -> int:
        return len(self.decode_slots) + len(self._chunk_slots)

    def add_chunk(self, slot: int, tokens: int) -> None:
        """A row that computes `tokens` tokens from where the slot stands."""
        self._chunk_slots.append(slot)
        self._chunk_tokens.append(tokens)

    def note_blocks(self, entry: Entry, start: int) -> None:
        """The worker learns the entry's block tables from index `start` on."""
        for table, (slots, index, blocks) in zip(entry.sequence.tables, self._news, strict=True):
            for position in range(start, len(table)):
                if table[position] != NO_BLOCK:
                    slots.append(entry.slot)
                    index.append(position)
                    blocks.append(table[position])

    def columns(self, table: SlotTable) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """slots, start, num_tokens, samples. A row samples when it reaches the last token that exists or will exist."""
        slots, tokens = self.decode_slots, self.decode_tokens
        if self._chunk_slots:
            slots = np.concatenate((slots, ints(self._chunk_slots)))
            tokens = np.concatenate((tokens, ints(self._chunk_tokens)))
        start = table.computed[slots]
        total = table.known[slots] + table.pending[slots]
        samples = np.where(total < table.limit[slots], start + tokens - total + 1, 0)
        return slots, start, tokens, np.maximum(samples, 0).astype(np.int32)

    def deltas(self) -> tuple[BlockDelta, ...]:
        """Block-table news, one per KV group."""
        return tuple(
            BlockDelta(slots=ints(slots), index=ints(index), blocks=ints(blocks)) for slots, index, blocks in self._news
        )

    def padded_drafts(self) -> IntArray | None:
        """Drafts of all rows, -1 where there are none."""
        if self.drafts is None:
            return None
        padding = np.full((len(self._chunk_slots), self.drafts.shape[1]), -1, np.int32)
        return np.concatenate((self.drafts, padding))


def launch(rows: Rows, state: State) -> StepPlan:
    """Make the plan, and book it as in flight."""
    slots, start, num_tokens, samples = rows.columns(state.table)
    step = state.next_step
    state.next_step += 1
    state.table.launch(slots, num_tokens, samples)
    entries = state.entries_at(slots.tolist())
    flight = Flight(step=step, entries=entries, slots=slots, start=start, num_tokens=num_tokens, samples=samples)
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
