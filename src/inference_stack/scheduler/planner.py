"""Which rows the next step computes. No phases: every request's computed tokens catch up with its known tokens.

One pass over running requests in policy order (decode rows as columns; only those that need a block or carry a prompt chunk
are looked at one by one), then one over waiting requests. Decode rows are charged to the budget first. When memory runs out,
requests later in order are preempted, so the first in order always progresses.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.core.seams import Proposer
from inference_stack.core.step import IntArray, StepPlan, ints
from inference_stack.kv.manager import blocks_for
from inference_stack.kv.prefix import Match
from inference_stack.policy.budget import StepBudget
from inference_stack.policy.step_time import StepTimeFit
from inference_stack.scheduler.entry import NO_SLOT, Entry
from inference_stack.scheduler.rows import Rows, launch
from inference_stack.scheduler.state import State

MAX_SCAN: Final = 64
"""Waiting requests looked at in one plan; those that wait for another's prefix are passed over."""


Places = npt.NDArray[np.intp]
"""Indices into the running requests."""
Mask = npt.NDArray[np.bool_]
"""Which of the running requests."""


class Planner:
    """Chooses rows. A `proposer` guesses tokens for decode rows; it needs to see every token, so such rows are not planned
    ahead of results: what a lagging pipeline would hide, speculation has to earn."""

    def __init__(self, state: State, fit: StepTimeFit, proposer: Proposer | None) -> None:
        self._state = state
        self._fit = fit
        self._proposer = proposer
        self._one = np.ones(state.limits.max_running, np.int32)
        self._one.flags.writeable = False

    def plan(self, now: float) -> StepPlan | None:
        """The next step, or None when nothing can be computed now."""
        state = self._state
        if not state.ordering.static:
            state.reorder(now)
        if state.flights and state.running and state.running[0].cornered:
            return None
        self._displace()
        rows = Rows(len(state.kv.groups), now)
        budget = self._running_rows(rows)
        self._admit_waiting(rows, budget)
        return launch(rows, state) if len(rows) else None

    # -- running requests

    def _running_rows(self, rows: Rows) -> StepBudget:
        """Decode rows and prompt chunks of running requests; returns what is left of the step."""
        state = self._state
        order, running = state.order(), list(state.running)
        computed, total, limit, capacity = state.table.rows(order)
        due = np.minimum(total, limit - 1) - computed
        if self._proposer is not None:
            due[state.table.pending(order) > 0] = 0
        decoding = (due == 1) & (total < limit)
        chunking = due > decoding
        decode = decoding.nonzero()[0]
        if len(decode) > state.limits.max_batch_tokens:
            decode = in_turn(decode, state.limits.max_batch_tokens, state.next_step)
            decoding[:] = False
            decoding[decode] = True
        want, drafts = self._one[: len(order)], None
        if self._proposer is not None:
            want = want.copy()
            drafts = self._propose(running, decode, np.minimum(limit - total, capacity - computed) - 1, want)
        budget = self._budget(decode, want, computed)
        lacking = decoding & (computed + want > capacity)
        if self._ample(lacking, chunking):
            self._grow(lacking.nonzero()[0], running, order, capacity, rows)
            lacking = chunking
        for place in (lacking | chunking).nonzero()[0].tolist():
            entry = running[place]
            if entry.slot == NO_SLOT:
                continue
            if chunking[place]:
                self._chunk(entry, int(computed[place]), int(due[place]), rows, budget)
            elif not self._secure(entry, int(computed[place] + want[place]), rows):
                decoding[place] = False
        if rows.starved or len(running) != len(state.running):
            decoding &= np.array([entry.slot != NO_SLOT for entry in running], np.bool_)
            drafts = None if drafts is None else drafts[decoding[decode]]
            decode = decoding.nonzero()[0]
        if len(decode) == len(running):
            rows.decode(running, order, computed, want, drafts)
        else:
            entries = [running[place] for place in decode.tolist()]
            rows.decode(entries, order[decode], computed[decode], want[decode], drafts)
        return budget

    def _budget(self, decode: Places, want: IntArray, computed: IntArray) -> StepBudget:
        """The step's budget with its decode rows charged. The time target only counts while something decodes."""
        limits, rows = self._state.limits, len(decode)
        budget = StepBudget(limits.max_batch_tokens, limits.itl_target if rows else None, self._fit.model)
        tokens = rows if self._proposer is None else int(want[decode].sum())
        context = int(computed[decode].sum()) + tokens if limits.itl_target is not None else 0
        budget.charge(tokens, rows, context)
        return budget

    def _chunk(self, entry: Entry, start: int, due: int, rows: Rows, budget: StepBudget) -> None:
        """As much of the prompt as the step has room for."""
        tokens = budget.chunk(start, min(due, BLOCK_TOKENS) if entry.cornered else due)
        if tokens > 0 and self._secure(entry, start + tokens, rows):
            self._state.catch_up(entry)
            rows.chunk(entry, start, tokens)
            budget.charge_chunk(start, tokens)

    def _ample(self, lacking: Mask, chunking: Mask) -> bool:
        """Whether there is memory for all that running requests may want in this step, whoever comes first."""
        blocks, chunks = int(np.count_nonzero(lacking)), int(np.count_nonzero(chunking))
        if chunks:
            blocks += chunks + self._state.limits.max_batch_tokens // BLOCK_TOKENS
        return self._state.kv.ample(blocks)

    def _grow(self, lacking: Places, running: list[Entry], order: IntArray, capacity: IntArray, rows: Rows) -> None:
        """Give a block to each of these decode rows, all at once. None wants more: drafts never make anyone allocate."""
        if not len(lacking):
            return
        state = self._state
        entries = [running[place] for place in lacking.tolist()]
        for entry in entries:
            entry.room_after = -1
        slots, room = order[lacking], capacity[lacking]
        index = [tokens // BLOCK_TOKENS for tokens in room.tolist()]
        rows.note_grown(slots.tolist(), index, state.kv.grow([entry.sequence for entry in entries]))
        state.table.capacity[slots] = room + BLOCK_TOKENS

    def _secure(self, entry: Entry, tokens: int, rows: Rows) -> bool:
        """Make the entry's block tables hold `tokens` tokens, preempting who ranks after it. False: not in this step."""
        state = self._state
        before = entry.sequence.blocks
        missing = blocks_for(tokens) - before
        while missing > 0 and not state.kv.allocate(entry.sequence, before + missing):
            if self._patient(entry, missing):
                rows.starved = True
                return False
            victim = state.ordering.victim(other for other in state.running if other.rank > entry.rank)
            if victim is None:
                rows.starved = not self._cornered(entry)
                return False
            state.preempt(victim)
            entry.room_after = state.next_step - 1
        entry.room_after = -1
        state.table.capacity[entry.slot] = entry.sequence.blocks * BLOCK_TOKENS
        rows.note_blocks(entry, before)
        return True

    def _patient(self, entry: Entry, missing: int) -> bool:
        """Whether blocks that were freed already, and are still fenced, are worth waiting for before preempting anyone."""
        state = self._state
        if entry.room_after < 0 and state.kv.soon(missing):
            entry.room_after = state.next_step - 1
        return entry.room_after > state.retired

    def _cornered(self, entry: Entry) -> bool:
        """The entry cannot grow although nothing else runs here: let it start over with the whole arena."""
        state = self._state
        if len(state.running) > 1 or state.flights or entry.cornered:
            return False
        state.corner(entry)
        return True

    def _propose(self, running: list[Entry], decode: Places, room: IntArray, want: IntArray) -> IntArray | None:
        """Ask for drafts where `room` allows; `want` becomes 1 + drafts. Drafts never make anyone allocate or wait."""
        limits = self._state.limits
        if self._proposer is None or not len(decode) or running[0].cornered:
            return None
        asked = np.clip(room[decode], 0, limits.max_drafts)
        asked[np.cumsum(asked) > limits.max_batch_tokens - len(decode)] = 0
        if not asked.any():
            return None
        entries = [running[place] for place in decode.tolist()]
        for entry in entries:
            self._state.catch_up(entry)
        drafts = self._proposer.propose([entry.tokens for entry in entries], ints(asked))
        usable = (drafts >= 0) & (np.arange(drafts.shape[1]) < asked[:, None])
        given = np.cumprod(usable, axis=1, dtype=np.int32).sum(axis=1, dtype=np.int32)
        want[decode] += given
        kept: IntArray = np.where(np.arange(drafts.shape[1]) < given[:, None], drafts, -1).astype(np.int32)
        return kept

    # -- waiting requests

    def _displace(self) -> None:
        """Preempt for the first waiting request as long as the policy lets it take room from a running one."""
        state = self._state
        if not state.waiting or not state.running or state.kv.yielding:
            return
        head = state.waiting[0]
        if not state.ordering.displaces(head.request, state.running[-1].request):
            return
        if head.resume_after > state.retired or self._waits(head) or head.alone or state.running[0].alone:
            return
        while not self._could_start(head):
            weaker = [other for other in state.running if state.ordering.displaces(head.request, other.request)]
            victim = state.ordering.victim(weaker)
            if victim is None:
                return
            state.preempt(victim)

    def _could_start(self, entry: Entry) -> bool:
        """Whether a slot and enough blocks are free, or will be when the steps in flight have retired."""
        table = self._state.table
        return table.free + table.fenced > 0 and self._state.kv.soon(blocks_for(len(entry.tokens)))

    def _admit_waiting(self, rows: Rows, budget: StepBudget) -> None:
        """Start waiting requests in order. Only those that wait for a prefix are passed over; the rest wait their turn."""
        state = self._state
        if rows.starved or state.kv.yielding or (state.running and state.running[0].alone):
            return
        for entry in state.waiting[:MAX_SCAN]:
            if self._waits(entry):
                continue
            if budget.tokens <= 0 or not state.table.free or entry.resume_after > state.retired:
                return
            if entry.alone and (state.running or state.flights):
                return
            if not self._admit(entry, rows, budget) or entry.alone:
                return

    def _waits(self, entry: Entry) -> bool:
        """Whether a running request is computing what this one needs next."""
        return entry.waits_for in self._state.leaders

    def _admit(self, entry: Entry, rows: Rows, budget: StepBudget) -> bool:
        """Start one request; False when nobody after it should be tried."""
        state, kv, sequence = self._state, self._state.kv, entry.sequence
        match = kv.match(sequence, len(entry.tokens) if entry.reuses_prefix else 1)
        if self._follows(entry, match):
            return True
        start = match.blocks * BLOCK_TOKENS
        due = min(len(entry.tokens), entry.limit - 1) - start
        tokens = budget.chunk(start, min(due, BLOCK_TOKENS) if entry.cornered or kv.claiming else due)
        if tokens <= 0:
            return False
        if state.running and not kv.reaches(blocks_for(len(entry.tokens)) - match.blocks):
            return False
        kv.begin(sequence, match)
        if not kv.allocate(sequence, blocks_for(start + tokens)):
            kv.free(sequence)
            if state.running or state.flights or kv.claiming:
                return False
            state.claim(entry)
            return self._admit(entry, rows, budget)
        self._enter(entry, start, tokens, rows)
        budget.charge_chunk(start, tokens)
        return True

    def _follows(self, entry: Entry, match: Match) -> bool:
        """Let it wait when the block it needs next is being computed by a running request."""
        names, index = entry.sequence.names, match.blocks
        if not entry.reuses_prefix or index >= min(len(names), (len(entry.tokens) - 1) // BLOCK_TOKENS):
            return False
        if names[index] not in self._state.leaders:
            return False
        entry.waits_for = names[index]
        return True

    def _enter(self, entry: Entry, computed: int, tokens: int, rows: Rows) -> None:
        """The request runs: give it a slot and its first row."""
        state = self._state
        state.start(entry, computed)
        if entry.cached_tokens is None:
            entry.cached_tokens = computed
            if len(entry.tokens) == entry.prompt_len:
                entry.queue_seconds = max(0.0, rows.now - entry.request.arrival)
            state.counters.prompt_tokens += entry.prompt_len
            state.counters.prefix_queries += entry.prompt_len
            state.counters.prefix_hits += computed
        rows.new.append(entry.new_slot(computed))
        rows.note_blocks(entry, 0)
        rows.chunk(entry, computed, tokens)


def in_turn(places: Places, count: int, step: int) -> Places:
    """`count` of more places, other ones in every step, so that rows which do not fit a step together go on at one pace."""
    return np.sort(np.take(places, np.arange(count) + step * count, mode="wrap"))
