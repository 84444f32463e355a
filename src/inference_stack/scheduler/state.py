"""Who waits, who runs, what is in flight; and how a request moves between these. Every transition is here, in one place.

    add ──▶ WAITING ──start──▶ RUNNING ──leave──▶ gone
               ▲                  │
               └────preempt───────┘

Knows nothing of how rows are chosen or of what results mean.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf
from operator import attrgetter

import numpy as np

from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.core.step import IntArray, TokenDelta
from inference_stack.kv.manager import KvManager
from inference_stack.policy.ordering import OrderingPolicy
from inference_stack.scheduler.entry import FOREVER, NO_SLOT, Entry
from inference_stack.scheduler.limits import SchedulerLimits
from inference_stack.scheduler.table import SlotTable, unroll

_rank = attrgetter("rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """A step in flight, as it was planned. Columns have one entry per row."""

    step: int
    entries: Sequence[Entry]
    slots: IntArray
    start: IntArray
    num_tokens: IntArray
    samples: IntArray


@dataclass(slots=True)
class Counters:
    """Totals since the instance started."""

    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    step_seconds: float = 0.0


class State:
    """All requests of one instance."""

    def __init__(self, limits: SchedulerLimits, kv: KvManager, ordering: OrderingPolicy) -> None:
        self.limits = limits
        self.kv = kv
        self.ordering = ordering
        self.table = SlotTable(limits.max_running)
        self.entries: dict[str, Entry] = {}
        self.waiting: list[Entry] = []
        self.running: list[Entry] = []
        self.flights: deque[Flight] = deque()
        self.deltas: list[TokenDelta] = []
        self.leaders: dict[bytes, Entry] = {}
        self.counters = Counters()
        self.next_step = 0
        self.retired = -1
        self._slots = array("i")
        self._claimant: Entry | None = None
        self._deadlines: list[tuple[float, int, bool, str]] = []

    # -- transitions

    def enqueue(self, entry: Entry) -> None:
        """A new request waits."""
        self.entries[entry.id] = entry
        insort(self.waiting, entry, key=_rank)
        qos = entry.request.qos
        if qos.deadline is not None:
            heappush(self._deadlines, (qos.deadline, entry.rank[1], False, entry.id))
        if qos.ttft_deadline is not None and len(entry.tokens) == entry.prompt_len:
            heappush(self._deadlines, (qos.ttft_deadline, entry.rank[1], True, entry.id))

    def start(self, entry: Entry, computed: int) -> None:
        """A waiting request whose block tables are ready gets a slot."""
        sequence = entry.sequence
        entry.slot = self.table.assign(
            entry.id,
            entry.attempt,
            known=len(entry.tokens),
            computed=computed,
            limit=entry.limit,
            capacity=sequence.blocks * BLOCK_TOKENS,
            published=sequence.published,
            plain=entry.plain,
        )
        self._unqueue(entry)
        place = bisect_left(self.running, entry.rank, key=_rank)
        self.running.insert(place, entry)
        self._slots.insert(place, entry.slot)
        entry.waits_for = b""
        self._lead(entry)
        if self._claimant is entry and not entry.cornered:
            self._unclaim()

    def preempt(self, entry: Entry) -> None:
        """A running request gives its memory and slot back and waits; tokens in flight still count when they arrive."""
        self.catch_up(entry)
        self._stop(entry)
        entry.room_after = -1
        entry.resume_after = self.next_step - 1
        self.counters.preemptions += 1
        insort(self.waiting, entry, key=_rank)

    def void(self, entry: Entry) -> None:
        """Preempt, and disregard the entry's rows in flight: they were built on a token that does not exist."""
        self.preempt(entry)
        entry.ignore_until = entry.resume_after

    def corner(self, entry: Entry) -> None:
        """The only running request cannot grow: it starts over alone, with the whole arena claimed for it."""
        entry.cornered = True
        self.preempt(entry)
        self.claim(entry)

    def claim(self, entry: Entry) -> None:
        """Ask other instances to leave the arena to this one until the entry has started (cornered: has left)."""
        self._claimant = entry
        self.kv.claim()

    def leave(self, entry: Entry) -> None:
        """The request is finished, failed or aborted: nothing of it remains, and its rows in flight mean nothing."""
        if entry.slot == NO_SLOT:
            self._unqueue(entry)
        else:
            self._stop(entry)
        entry.ignore_until = FOREVER
        del self.entries[entry.id]
        if self._claimant is entry:
            self._unclaim()
        self._drop_stale_deadlines()

    def catch_up(self, entry: Entry, but: int = 0) -> None:
        """Give a running entry the known tokens that only the slot table has, except the last `but`.

        Ordinary decode rows leave their tokens there; the entry is brought up to date once per block, and whenever
        something else happens to it.
        """
        slot, have = entry.slot, len(entry.tokens)
        known = int(self.table.known[slot]) - but
        if known > have:
            entry.tokens.frombytes(unroll(self.table.recent[slot].tobytes(), have, known))

    def published(self, entry: Entry, before: int) -> None:
        """Blocks from `before` on were published: those who wait for them may look again."""
        sequence = entry.sequence
        self.table.published[entry.slot] = sequence.published
        if before < entry.leads:
            self._unlead(entry, before, sequence.published)

    # -- views

    def order(self) -> IntArray:
        """Slots of running requests, first in order first."""
        return np.array(self._slots, np.int32)

    def reorder(self, now: float) -> None:
        """Compute every place again, for policies whose order changes with time."""
        for entry in self.entries.values():
            entry.rank = (self.ordering.key(entry.request, now), entry.rank[1])
        self.waiting.sort(key=_rank)
        self.running.sort(key=_rank)
        self._slots = array("i", [entry.slot for entry in self.running])

    @property
    def next_deadline(self) -> float:
        """When `overdue` may first have something to tell; infinity for never."""
        return self._deadlines[0][0] if self._deadlines else inf

    def overdue(self, now: float) -> list[Entry]:
        """Requests whose deadline has passed, once each. A first-token deadline is met by the first emitted token."""
        late: dict[str, Entry] = {}
        while self._deadlines and self._deadlines[0][0] <= now:
            _, arrival, first_token, request_id = heappop(self._deadlines)
            entry = self.entries.get(request_id)
            if entry is None or entry.rank[1] != arrival or (first_token and len(entry.tokens) > entry.prompt_len):
                continue
            late[entry.id] = entry
        return list(late.values())

    # -- inside

    def _unclaim(self) -> None:
        self._claimant = None
        self.kv.unclaim()

    def _stop(self, entry: Entry) -> None:
        self._unlead(entry, entry.sequence.published, entry.leads)
        self.kv.free(entry.sequence)
        self.table.release(entry.slot, self.kv.fence)
        entry.slot = NO_SLOT
        place = bisect_left(self.running, entry.rank, key=_rank)
        del self.running[place], self._slots[place]

    def _unqueue(self, entry: Entry) -> None:
        del self.waiting[bisect_left(self.waiting, entry.rank, key=_rank)]

    def _lead(self, entry: Entry) -> None:
        """Say which blocks this entry is about to compute, so that nobody else computes them too."""
        names = entry.sequence.names
        entry.leads = len(names)
        for name in names[entry.sequence.published :]:
            self.leaders.setdefault(name, entry)

    def _unlead(self, entry: Entry, start: int, end: int) -> None:
        for name in entry.sequence.names[start : min(end, entry.leads)]:
            if self.leaders.get(name) is entry:
                del self.leaders[name]

    def _drop_stale_deadlines(self) -> None:
        """Keep the heap no more than twice as long as it need be."""
        if len(self._deadlines) > 64 + 4 * len(self.entries):
            self._deadlines = [item for item in self._deadlines if item[3] in self.entries]
            heapify(self._deadlines)
