"""Whatever strikes: no token lost, repeated or changed, nothing leaked, nobody starved. And planted bugs are found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from inference_stack.core.errors import InferenceError
from inference_stack.core.request import Request
from inference_stack.core.step import TokenDelta
from inference_stack.dispatch.dispatcher import Dispatcher
from inference_stack.dispatch.flight import Flight
from inference_stack.kv.manager import KvManager
from inference_stack.policy.routing import Router
from inference_stack.scheduler.planner import Planner
from inference_stack.scheduler.scheduler import Scheduler
from inference_stack.simulator.clients import Broken
from inference_stack.simulator.faults import FATES, GATEWAY, FaultPlan, faults_from
from inference_stack.simulator.fleet import Fleet
from inference_stack.simulator.line import LinkSettings
from tests.simulator.parts import Listed, spec, traffic

PLAN = FaultPlan(every=1.5, lasts=(0.2, 4.0))


def survive(seed: int, workload: Listed | None = None, plan: FaultPlan = PLAN) -> Fleet:
    """A run with everything that may strike, invariants checked every second and at rest."""
    asked = spec(
        workload or traffic(60, seed, rate=6.0, deadlines=seed % 2 == 0),
        nodes=3,
        blocks=60 if seed % 3 == 0 else 300,
        depth=seed % 3,
        faults=replace(plan, seed=seed),
        gateways=1 + seed // 3 % 2,
        recovery_tokens=300 if seed // 5 % 2 else 16384,
        link=LinkSettings(latency=0.05 if seed // 2 % 2 else 0.0002),
        checks=1.0,
        patience=60.0,
        seed=seed,
    )
    fleet = Fleet(asked)
    fleet.run()
    return fleet


@pytest.mark.parametrize("seed", range(25))
def test_every_promise_holds_under_faults(seed: int) -> None:
    fleet = survive(seed)
    ends = [outcome.finish for outcome in fleet.ledger.outcomes]
    assert len(ends) == 60 and set(ends) <= {"length", "error"}
    assert all(outcome.error == "deadline_exceeded" for outcome in fleet.ledger.outcomes if outcome.finish == "error")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_seeds() -> None:
    strikes = sum(survive(seed)._fury.strikes for seed in range(1000))  # type: ignore[union-attr]
    assert strikes > 5000


MOVING = {"kill", "crash", "drain", "hang", "cut_up", "cut_down", "cut_both", GATEWAY}


@pytest.mark.parametrize("kind", [*FATES, GATEWAY])
def test_each_fault_strikes_and_is_survived(kind: str) -> None:
    fleet = survive(3, traffic(80, 3, rate=20.0), FaultPlan(every=0.5, kinds=(kind,), lasts=(0.5, 3.0)))
    assert any(f": {kind} for" in what for _, what in fleet.ledger.events)
    moved = sum(outcome.moves for outcome in fleet.ledger.outcomes)
    assert (moved > 0) == (kind in MOVING)


def test_the_same_seed_is_the_same_run() -> None:
    one, other = survive(7), survive(7)
    assert one.ledger.outcomes == other.ledger.outcomes
    assert one.ledger.events == other.ledger.events


def test_streams_of_a_killed_node_go_on_elsewhere() -> None:
    fleet = Fleet(spec(traffic(10, 2, rate=100.0), nodes=2, interval=1e9))
    fleet.loop.at(0.3, fleet.nodes[0].kill)
    run = fleet.run()
    moved = [outcome for outcome in run.outcomes if outcome.moves]
    assert moved and all(outcome.finish == "length" for outcome in run.outcomes)
    assert {outcome.node for outcome in moved} == {1}


def test_a_silent_node_is_given_up_and_comes_back_clean() -> None:
    fleet = Fleet(spec(traffic(12, 2, rate=50.0), nodes=2, interval=1e9))
    fleet.loop.at(0.2, fleet.nodes[0].hang)
    fleet.loop.at(4.0, fleet.nodes[0].wake)
    run = fleet.run()
    assert any(outcome.moves for outcome in run.outcomes)
    assert all(outcome.finish == "length" for outcome in run.outcomes)
    fleet.loop.run(5.0)
    assert fleet.nodes[0].sound and not fleet.nodes[0].runs


def given_up(hung: bool) -> Fleet:
    """Long answers; a node hangs, or the only one is cut off, until it has been given up, and it is back before they have ended."""
    arrivals = traffic(4, 2, rate=100.0).arrivals
    long = Listed(tuple(replace(arrival, output_tokens=600, deadline=None) for arrival in arrivals))
    fleet = Fleet(spec(long, nodes=1 + hung, link=LinkSettings(latency=0.05)))
    node = fleet.nodes[0]
    fleet.loop.at(0.5, node.hang if hung else lambda: node.cut(down=True, up=True))
    fleet.loop.at(3.0, node.wake if hung else node.mend)
    fleet.run()
    return fleet


@pytest.mark.parametrize("hung", [False, True])
def test_what_a_node_computes_after_it_was_given_up_is_neither_told_twice_nor_kept(hung: bool) -> None:
    fleet = given_up(hung)
    assert [outcome.finish for outcome in fleet.ledger.outcomes] == ["length"] * 4
    assert any(outcome.moves for outcome in fleet.ledger.outcomes)


def test_streams_of_a_dead_gateway_go_on_through_another() -> None:
    fleet = Fleet(spec(traffic(10, 2, rate=100.0), nodes=2, gateways=2))
    fleet.loop.at(0.3, fleet.gateways[0].die)
    run = fleet.run()
    moved = {outcome.number for outcome in run.outcomes if outcome.moves}
    assert moved and moved <= {0, 2, 4, 6, 8}
    assert all(outcome.finish == "length" for outcome in run.outcomes)


def test_a_drained_node_loses_nothing() -> None:
    fleet = Fleet(spec(traffic(10, 2, rate=100.0), nodes=2))
    fleet.loop.at(0.2, fleet.nodes[0].drain)
    fleet.loop.at(0.6, fleet.nodes[0].leave)
    run = fleet.run()
    assert any(outcome.moves for outcome in run.outcomes)
    assert all(outcome.finish == "length" for outcome in run.outcomes)


# -- planted bugs: each class of them is caught


def _leak(monkeypatch: pytest.MonkeyPatch) -> None:
    original, count = KvManager.free, iter(range(10**9))

    def free(self: KvManager, sequence: object) -> None:
        if next(count) % 7 == 6:
            sequence.tables[0].pop()  # type: ignore[attr-defined]
        original(self, sequence)  # type: ignore[arg-type]

    monkeypatch.setattr(KvManager, "free", free)


def _double_free(monkeypatch: pytest.MonkeyPatch) -> None:
    original, count = KvManager.free, iter(range(10**9))

    def free(self: KvManager, sequence: object) -> None:
        held = list(sequence.tables[0])  # type: ignore[attr-defined]
        original(self, sequence)  # type: ignore[arg-type]
        if next(count) % 5 == 4 and held:
            self.pools[0].release_many(held[-1:], None)

    monkeypatch.setattr(KvManager, "free", free)


def _starve(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Planner._admit_waiting

    def admit(self: Planner, rows: object, budget: object) -> None:
        kept = self._state.waiting
        self._state.waiting = [entry for entry in kept if not entry.id.endswith("7")]
        hidden = [entry for entry in kept if entry.id.endswith("7")]
        original(self, rows, budget)  # type: ignore[arg-type]
        self._state.waiting = sorted(self._state.waiting + hidden, key=lambda entry: entry.rank)

    monkeypatch.setattr(Planner, "_admit_waiting", admit)


def _lose_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    original, count = Scheduler.advance, iter(range(10**9))

    def advance(self: Scheduler, result: object, now: float) -> list[TokenDelta]:
        deltas = original(self, result, now)  # type: ignore[arg-type]
        return deltas[1:] if next(count) % 50 == 49 else deltas

    monkeypatch.setattr(Scheduler, "advance", advance)


def _repeat_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    original, count = Scheduler.advance, iter(range(10**9))

    def advance(self: Scheduler, result: object, now: float) -> list[TokenDelta]:
        deltas = original(self, result, now)  # type: ignore[arg-type]
        twice = [delta for delta in deltas[:1] if delta.tokens and delta.finish is None]
        return twice + deltas if next(count) % 50 == 49 else deltas

    monkeypatch.setattr(Scheduler, "advance", advance)


def _forget_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Flight.next_attempt

    def next_attempt(self: Flight) -> Request:
        request = original(self)
        known = request.continuation
        return replace(request, continuation=replace(known, emitted=known.emitted[:-1]))

    monkeypatch.setattr(Flight, "next_attempt", next_attempt)


def _reuse_an_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Flight.next_attempt

    def next_attempt(self: Flight) -> Request:
        if self.moves:
            self.attempt -= 1
        return original(self)

    monkeypatch.setattr(Flight, "next_attempt", next_attempt)


def _leave_one_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Dispatcher._recover

    def recover(self: Dispatcher, flights: Iterable[Flight], reason: str) -> None:
        original(self, [flight for flight in flights if not flight.id.endswith("7")], reason)

    monkeypatch.setattr(Dispatcher, "_recover", recover)


def _stop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dispatcher, "_sweep", lambda self: None)


def _condemn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Dispatcher._withdraw

    def withdraw(self: Dispatcher, flight: Flight, node: object) -> None:
        original(self, flight, node)  # type: ignore[arg-type]
        flight.deaths += 3

    monkeypatch.setattr(Dispatcher, "_withdraw", withdraw)


def _count_lost_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Router, "withdrawn", lambda self, node, prompt, uncached: None)


def _let_ghosts_through(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Dispatcher.deltas

    def deltas(self: Dispatcher, key: str, deltas: Iterable[TokenDelta]) -> None:
        running = self._nodes.get(key).running  # type: ignore[union-attr]
        present = {request_id: flight.attempt for request_id, flight in running.items()}
        original(self, key, [replace(one, attempt=present.get(one.request_id, one.attempt)) for one in deltas])

    monkeypatch.setattr(Dispatcher, "deltas", deltas)


PLANTS = (_leak, _double_free, _starve, _lose_tokens, _repeat_tokens)
DISPATCH_PLANTS = (
    _forget_a_token,
    _reuse_an_attempt,
    _leave_one_behind,
    _stop_nothing,
    _condemn_at_once,
    _count_lost_load,
)


@pytest.mark.parametrize("plant", [*PLANTS, *DISPATCH_PLANTS, _let_ghosts_through])
def test_a_planted_bug_is_caught(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((Broken, RuntimeError)):
        for seed in (1, 2, 4):
            survive(seed)
        for hung in (False, True):
            given_up(hung)


def test_a_fleet_that_stands_still_is_noticed_without_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    _starve(monkeypatch)
    with pytest.raises(Broken, match="nothing has happened"):
        Fleet(spec(traffic(20, 1), patience=50.0)).run()


# -- settings


def test_faults_are_read_and_refused_by_name() -> None:
    assert faults_from({"every": 30, "kinds": ["kill"], "lasts": [1, 2], "seed": 3}) == FaultPlan(
        every=30.0, kinds=("kill",), lasts=(1, 2), seed=3
    )
    for wrong in (
        {},
        {"every": 0},
        {"every": 1, "kinds": ["flood"]},
        {"every": 1, "lasts": [3, 1]},
        {"each": 1},
        {"every": 1, "lasts": 5},
        {"every": 1, "seed": "x"},
        [1],
    ):
        with pytest.raises(InferenceError):
            faults_from(wrong)
