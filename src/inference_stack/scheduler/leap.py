"""Quiet stretches of decode, many steps at once: what `plan` and `advance` would come to when nothing else happens meanwhile.

For whoever drives a scheduler on a clock of its own. A stretch ends before anything that `plan` or `advance` would have to decide:
a block that fills or is needed, a completion that ends, somebody waiting. Equal to stepping, which is property-tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.core.step import IntArray
from inference_stack.policy.step_time import StepTimeFit
from inference_stack.scheduler.state import State


def quiet_steps(state: State) -> int:
    """How many results may come, each answered by a plan, with nothing to decide: one token for each running request and no news
    but that. 0 when it is not quiet. Deadlines are the caller's to watch: see `State.next_deadline`."""
    if not _steady(state):
        return 0
    flight, table = state.flights[0], state.table
    slots = flight.slots
    computed, total, limit, capacity = table.rows(slots)
    room = np.minimum(capacity - computed, limit - total)
    unended = limit - table.known.take(slots) - 1
    unfilled = (table.published.take(slots) + 1) * BLOCK_TOKENS - 1 - flight.start
    return max(0, int(np.minimum(room, np.minimum(unended, unfilled)).min()))


def _steady(state: State) -> bool:
    """Whether everybody runs, and all that is in flight are decode rows of everybody."""
    running, flights = state.running, state.flights
    if not running or not flights or state.waiting or state.deltas or not state.ordering.static or state.kv.yielding:
        return False
    if (
        running[0].alone
        or state.table.untold
        or len(running) > state.limits.max_batch_tokens
        or state.limits.max_drafts
    ):
        return False
    order = state.order()
    for flight in flights:
        if flight.entries != running or not (flight.slots == order).all():
            return False
        if np.count_nonzero(flight.num_tokens != 1) or np.count_nonzero(flight.samples != 1):
            return False
    return bool(state.table.plain.take(order).all())


def leap(state: State, fit: StepTimeFit, tokens_RK: IntArray, seconds: Sequence[float]) -> None:
    """K results come, in `seconds` each, and each is answered by a plan. `tokens_RK` are the running requests' next tokens, in
    their order; none of them may end a completion. Raises `ValueError` beyond `quiet_steps`."""
    steps = len(seconds)
    if steps > quiet_steps(state):
        raise ValueError(f"{steps} steps are not a quiet stretch")
    flight, table = state.flights[0], state.table
    slots, rows = flight.slots, len(flight.slots)
    known = table.known.take(slots)[:, None] + np.arange(1, steps + 1)
    table.keep(slots[:, None], known, tokens_RK)
    for column in (table.known, table.total, table.computed):
        column[slots] += steps
    context = int(np.add.reduce(flight.start)) + rows
    for at, spent in enumerate(seconds):
        state.counters.step_seconds += spent
        fit.observe(rows, rows, context + at * rows, spent)
    state.counters.steps += steps
    state.counters.generation_tokens += rows * steps
    _shift(state, steps)


def _shift(state: State, steps: int) -> None:
    """What is in flight now is what was, so many steps later."""
    state.next_step += steps
    state.retired += steps
    for place, flight in enumerate(state.flights):
        state.flights[place] = replace(flight, step=flight.step + steps, start=flight.start + steps)
    state.kv.planned(state.next_step - 1)
    state.kv.retire(state.retired)
    state.table.retire(state.retired)
