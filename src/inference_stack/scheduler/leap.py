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
    if running[0].alone or state.table.untold or len(running) > state.limits.max_batch_tokens or state.limits.max_drafts:
        return False
    order = state.order()
    if not state.table.plain.take(order).all():
        return False
    return all(
        len(flight.slots) == len(order)
        and bool((flight.slots == order).all() and (flight.num_tokens == 1).all() and (flight.samples == 1).all())
        and all(mine is entry for mine, entry in zip(flight.entries, running, strict=True))
        for flight in flights
    )


def leap(state: State, fit: StepTimeFit, tokens_RK: IntArray, seconds: Sequence[float]) -> None:
    """K results come, in `seconds` each, and each is answered by a plan. `tokens_RK` are the running requests' next tokens, in their
    order; none of them may end a completion. Raises `ValueError` beyond `quiet_steps`."""
    steps = len(seconds)
    if steps > quiet_steps(state):
        raise ValueError(f"{steps} steps are not a quiet stretch")
    flight, table = state.flights[0], state.table
    slots, rows = flight.slots, len(flight.slots)
    for at in range(steps):
        table.keep(slots, table.known.take(slots) + (at + 1), tokens_RK[:, at])
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
