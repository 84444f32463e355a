"""The scheduler's own invariants, as a function that names what is broken.

Run when an engine falls idle, and after every step in tests. Knows the state, changes nothing.
"""

from __future__ import annotations

from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.scheduler.entry import NO_SLOT, Entry
from inference_stack.scheduler.state import State


def audit(state: State) -> None:
    """Raises `RuntimeError` at the first invariant that does not hold."""
    _require(len(state.waiting) + len(state.running) == len(state.entries), "a request neither waits nor runs")
    for queue in (state.waiting, state.running):
        ranks = [entry.rank for entry in queue]
        _require(ranks == sorted(ranks), "a queue is out of order")
    slots = [entry.slot for entry in state.running]
    _require(len(set(slots)) == len(slots), "two running requests share a slot")
    table = state.table
    _require(len(slots) + table.free + table.fenced == table.size, "slots do not add up: used + free + fenced != total")
    for entry in state.waiting:
        _require(entry.slot == NO_SLOT and entry.sequence.blocks == 0, f"waiting request {entry.id} holds resources")
    for entry in state.running:
        _audit_running(state, entry)
    leaders = set(map(id, state.leaders.values()))
    _require(leaders <= set(map(id, state.running)), "a request that does not run is said to be computing blocks")


def _audit_running(state: State, entry: Entry) -> None:
    table, slot, sequence = state.table, entry.slot, entry.sequence
    in_flight = [
        (int(samples), int(tokens))
        for flight in state.flights
        for other, samples, tokens in zip(flight.entries, flight.samples, flight.num_tokens, strict=True)
        if other is entry and flight.step > max(entry.ignore_until, entry.resume_after)
    ]
    _require(
        int(table.total[slot] - table.known[slot]) == sum(samples for samples, _ in in_flight),
        f"{entry.id}: placeholders are off",
    )
    behind = int(table.known[slot]) - len(entry.tokens)
    _require(0 <= behind <= BLOCK_TOKENS, f"{entry.id}: known tokens are off")
    _require(int(table.capacity[slot]) == sequence.blocks * BLOCK_TOKENS, f"{entry.id}: capacity is off")
    _require(int(table.computed[slot]) <= sequence.blocks * BLOCK_TOKENS, f"{entry.id}: computed beyond its blocks")
    _require(int(table.published[slot]) == sequence.published, f"{entry.id}: published blocks are off")
    _require(int(table.total[slot]) <= entry.limit, f"{entry.id}: scheduled beyond its limit")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise RuntimeError(f"scheduler: {message}")
