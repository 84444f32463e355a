"""Quiet stretches of decode, many steps at once: what `plan` and `advance` would come to when nothing else happens meanwhile.

For whoever drives a scheduler on a clock of its own and keeps no slot tables. A stretch ends before anything that would have to be
decided: a completion that ends, somebody waiting, memory that may run short. In between only blocks fill and are taken, at moments
known beforehand; the same calls do that as in a step. Equal to stepping, which is property-tested.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.core.step import IntArray
from inference_stack.policy.step_time import StepTimeFit
from inference_stack.scheduler.state import Flight, State
from inference_stack.scheduler.table import unroll


def quiet_steps(state: State, most: int) -> int:
    """How many results may come, at most `most`, each answered by a plan, with nothing to decide: one token for each running
    request and no news but that. 0 when it is not quiet. Deadlines are the caller's to watch: see `State.next_deadline`."""
    if not _steady(state):
        return 0
    table, slots = state.table, state.flights[0].slots
    computed, total, limit, capacity = table.rows(slots)
    unended = np.minimum(limit - table.known.take(slots) - 1, limit - total)
    steps = min(most, int(unended.min()))
    room, own = capacity - computed, state.kv.own_blocks
    while steps > 0 and _growth(room, steps) > own:
        steps = min(steps - 1, steps // 2 if _growth(room, steps // 2) > own else steps - 1)
    return max(0, steps)


def _growth(room: IntArray, steps: int) -> int:
    """Blocks that rows with room for so many more tokens need within `steps` steps."""
    return int((np.maximum(0, steps - room + BLOCK_TOKENS - 1) // BLOCK_TOKENS).sum())


def _steady(state: State) -> bool:
    """Whether everybody runs, and all that is in flight are decode rows of everybody."""
    running, flights = state.running, state.flights
    if not running or not flights or state.waiting or state.deltas or not state.ordering.static or state.kv.yielding:
        return False
    if state.kv.windowed or running[0].alone or state.table.untold:
        return False
    if len(running) > state.limits.max_batch_tokens or state.limits.max_drafts:
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
    if steps > quiet_steps(state, steps):
        raise ValueError(f"{steps} steps are not a quiet stretch")
    flight, table = state.flights[0], state.table
    slots, rows = flight.slots, len(flight.slots)
    _fill_blocks(state, flight, tokens_RK)
    last = min(steps, BLOCK_TOKENS)
    known = table.known.take(slots)[:, None] + np.arange(steps - last + 1, steps + 1)
    table.keep(slots[:, None], known, tokens_RK[:, steps - last :])
    for column in (table.known, table.total, table.computed):
        column[slots] += steps
    context = int(np.add.reduce(flight.start)) + rows
    for at, spent in enumerate(seconds):
        state.counters.step_seconds += spent
        fit.observe(rows, rows, context + at * rows, spent)
    state.counters.steps += steps
    state.counters.generation_tokens += rows * steps
    _shift(state, steps)


def _fill_blocks(state: State, flight: Flight, tokens_RK: IntArray) -> None:
    """Publish the blocks that fill and take those that are needed, in the order in which steps would."""
    table, slots, steps = state.table, flight.slots, tokens_RK.shape[1]
    full = ((table.published.take(slots) + 1) * BLOCK_TOKENS - flight.start).tolist()
    short = (table.capacity.take(slots) - table.computed.take(slots) + 1).tolist()
    fills, grows = _moments(full, steps), _moments(short, steps)
    known, recent = table.kept_by(slots)
    for step in sorted(fills.keys() | grows.keys()):
        state.kv.retire(state.retired + step)
        if step in fills:
            _publish(state, flight, fills[step], step, tokens_RK, known, recent)
        if step in grows:
            entries = [state.running[row] for row in grows[step]]
            for entry in entries:
                entry.room_after = -1
            state.kv.grow([entry.sequence for entry in entries])
            table.capacity[slots[grows[step]]] += BLOCK_TOKENS


def _moments(first: Iterable[int], steps: int) -> dict[int, list[int]]:
    """By step, the rows that something happens to: at step `first[row]` and every block's length after it."""
    found: dict[int, list[int]] = defaultdict(list)
    for row, start in enumerate(first):
        for step in range(start, steps + 1, BLOCK_TOKENS):
            found[step].append(row)
    return found


def _publish(
    state: State, flight: Flight, rows: list[int], step: int, tokens_RK: IntArray, known: list[int], recent: list[bytes]
) -> None:
    """What `Results` does about blocks that a step's result has filled."""
    entries = [state.running[row] for row in rows]
    before = [entry.sequence.published for entry in entries]
    for row, entry in zip(rows, entries, strict=True):
        have = len(entry.tokens)
        if have < known[row]:
            entry.tokens.frombytes(unroll(recent[row], have, known[row]))
            have = known[row]
        entry.tokens.frombytes(tokens_RK[row, have - known[row] : step].tobytes())
    full = ((flight.start[rows] + step) // BLOCK_TOKENS).tolist()
    state.kv.publish([(entry.sequence, entry.tokens, count) for entry, count in zip(entries, full, strict=True)])
    for entry, count in zip(entries, before, strict=True):
        state.published(entry, count)


def _shift(state: State, steps: int) -> None:
    """What is in flight now is what was, so many steps later."""
    state.next_step += steps
    state.retired += steps
    for place, flight in enumerate(state.flights):
        state.flights[place] = replace(flight, step=flight.step + steps, start=flight.start + steps)
    state.kv.planned(state.next_step - 1)
    state.kv.retire(state.retired)
    state.table.retire(state.retired)
