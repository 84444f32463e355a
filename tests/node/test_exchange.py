"""Whatever gateways and workers do, nothing is heard twice, by the wrong one, or kept for ever."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from inference_stack.core.request import FinishReason, Request
from inference_stack.core.step import TokenDelta
from inference_stack.node.exchange import Exchange
from inference_stack.node.orphans import Orphans
from inference_stack.node.placement import Placement, Slot
from inference_stack.wire.messages import Lost, StepReport, Submit
from tests.node.world import HandClock, info, request

NAMES = st.sampled_from("abcd")
WHO = st.integers(0, 1)
OPERATIONS = st.one_of(
    st.tuples(st.just("submit"), WHO, NAMES, st.just(1), st.booleans()),
    st.tuples(st.just("submit"), WHO, NAMES, st.integers(-1, 1), st.booleans()),
    st.tuples(st.just("abort"), WHO, NAMES),
    st.tuples(st.just("leave"), WHO),
    st.tuples(st.just("token"), WHO),
    st.tuples(st.just("finish"), WHO),
    st.tuples(st.just("die"), WHO),
    st.tuples(st.just("drain"), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 20.0])),
)


class Engine:
    """A worker that keeps what it was given; the highest attempt of an id replaces."""

    def __init__(self) -> None:
        self.running: dict[str, Request] = {}
        self.fresh: set[str] = set()  # has not emitted here
        self.ready = True
        self.condition = type("Condition", (), {"models": (info(),)})

    def submit(self, message: Submit) -> None:
        for one in message.requests:
            assert one.id not in self.running, "an older attempt was not ended first"
            assert not any(other.isolated and other.id in self.fresh for other in self.running.values())
            self.running[one.id] = one
            self.fresh.add(one.id)

    def abort(self, request_ids: tuple[str, ...]) -> None:
        for request_id in request_ids:
            self.running.pop(request_id, None)


class Peer:
    """A gateway's link that checks what it is told: only attempts that it asked for last, each ending once."""

    def __init__(self, name: str) -> None:
        self.process = (name, "1")
        self.open: dict[str, int] = {}
        self.watched = True
        self.told: list[str] = []

    def last_words(self, request_id: str) -> None:
        self.told.append(request_id)

    def heard_of(self) -> list[str]:
        heard, self.told = self.told, []
        return heard

    def tell(self, message: Any) -> None:
        if isinstance(message, Lost):
            for name in message.request_ids:
                del self.open[name]
        for one in message.deltas if isinstance(message, StepReport) else ():
            assert self.open[one.request_id] == one.attempt
            if one.finish is not None:
                del self.open[one.request_id]

    def tell_step(self, deltas: list[TokenDelta], report: StepReport) -> None:
        self.tell(StepReport(deltas=tuple(deltas)))


class House:
    """Two workers, two gateways, and all that may happen to them."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.engines = [Engine(), Engine()]
        self.slots = tuple(Slot(engine) for engine in self.engines)  # type: ignore[arg-type]
        self.exchange = Exchange(Placement(self.slots, 512), Orphans(30.0), self.clock)
        self.peers = [Peer("one"), Peer("two")]
        self.exchange.links |= set(self.peers)  # type: ignore[arg-type]
        self.highest: dict[str, int] = {}

    def submit(self, who: int, name: str, more: int, isolated: bool) -> None:
        """The next attempt, or one that is void."""
        attempt = self.highest.get(name, 0) + more
        if more <= 0:
            if name in self.highest:
                self.exchange.submit(self.peers[who], [request(name, attempt)])  # type: ignore[arg-type]
            return
        self.highest[name] = attempt
        for peer in self.peers:
            peer.open.pop(name, None)
        self.peers[who].open[name] = attempt
        self.exchange.submit(self.peers[who], [request(name, attempt, isolated=isolated)])  # type: ignore[arg-type]

    def abort(self, who: int, name: str) -> None:
        self.exchange.abort(self.peers[who], [name])  # type: ignore[arg-type]
        self.peers[who].open.pop(name, None)

    def leave(self, who: int) -> None:
        old = self.peers[who]
        self.peers[who] = Peer(old.process[0])
        self.exchange.left(old)  # type: ignore[arg-type]
        self.exchange.links.add(self.peers[who])  # type: ignore[arg-type]

    def token(self, where: int, finish: FinishReason | None = None) -> None:
        engine = self.engines[where]
        deltas = tuple(TokenDelta(one.id, one.attempt, (7,), finish=finish) for one in engine.running.values())
        engine.fresh.clear()
        if finish is not None:
            engine.running.clear()
        self.exchange.step(self.slots[where], StepReport(deltas=deltas))

    def finish(self, where: int) -> None:
        self.token(where, FinishReason.STOP)

    def die(self, where: int) -> None:
        lost = tuple(self.engines[where].running)
        self.engines[where].running.clear()
        self.exchange.lost(self.slots[where], Lost(request_ids=lost, reason="died", present=True))

    def drain(self, on: bool) -> None:
        self.exchange.refusing = on
        if on:
            self.exchange.evacuate_all("drained")

    def wait(self, seconds: float) -> None:
        self.clock._now += seconds
        self.exchange.expire()

    def check(self) -> None:
        for slot, engine in zip(self.slots, self.engines, strict=True):
            assert slot.runs.keys() == engine.running.keys()
            known = {
                began: sum(run.known_tokens for run in slot.runs.values() if run.began is began)
                for began in (False, True)
            }
            assert (slot.prompt, slot.context) == (known[False], known[True])
        assert self.exchange.owned == sum(len(peer.open) for peer in self.peers)


@settings(max_examples=200)
@given(st.lists(OPERATIONS, min_size=10, max_size=40))
def test_everybody_hears_of_their_own_and_nothing_is_left_behind(operations: list[tuple[Any, ...]]) -> None:
    house = House()
    for name, *arguments in operations:
        getattr(house, name)(*arguments)
        house.check()
    for _ in range(10):  # isolated requests go one after another
        house.finish(0)
        house.finish(1)
    house.wait(60.0)
    house.check()
    assert house.exchange.owned == 0
    assert [slot.prompt + slot.context + len(slot.runs) for slot in house.slots] == [0, 0]
    assert all(slot.trial is None for slot in house.slots)
    house.wait(60.1)
    assert house.exchange.remembered == 0


def test_what_ended_unheard_is_adopted_and_not_computed_again() -> None:
    house = House()
    house.submit(0, "a", 1, False)
    where = next(number for number, engine in enumerate(house.engines) if engine.running)
    house.finish(where)
    house.leave(0)
    house.submit(1, "a", 1, False)
    assert house.peers[1].open == {}
    assert not any(engine.running for engine in house.engines)
    house.check()


def test_what_ended_and_was_heard_is_forgotten() -> None:
    house = House()
    house.submit(0, "a", 1, False)
    where = next(number for number, engine in enumerate(house.engines) if engine.running)
    house.finish(where)
    house.wait(0.25)
    house.submit(1, "a", 1, False)
    assert any(engine.running for engine in house.engines)
