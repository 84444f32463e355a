"""Several gateways on one node: who hears what, whose attempt counts, and what becomes of those that are gone."""

import asyncio

import pytest

from inference_stack.core.request import FinishReason
from inference_stack.core.stats import InstanceStats
from inference_stack.core.step import TokenLogprob
from inference_stack.node.gateways import MOST_WAITING, GatewayLink
from inference_stack.wire.messages import Abort, Attach, Beat, StepReport, Submit
from tests.node.world import Gateway, HandClock, delta, moved, request, turns, world


async def test_each_gateway_hears_of_its_own_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        one, two = await scene.gateway("one"), await scene.gateway("two")
        await one.submit(request("a"))
        assert await worker.got() == ["a"]
        await two.submit(request("b"))
        assert await worker.got() == ["b"]
        await worker.says(delta("a", 7), delta("b", 8))
        assert await one.tokens() == {"a": (7,)}
        assert await two.tokens() == {"b": (8,)}


async def test_numbers_go_to_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        one, two = await scene.gateway("one"), await scene.gateway("two")
        await one.submit(request("a"))
        await worker.got()
        await worker.says(delta("a", 7), stats=(InstanceStats(model="m", running=1),))
        for gateway in (one, two):
            report = await asyncio.wait_for(gateway.link.receive(), 10)
            assert isinstance(report, StepReport) and report.stats[0].running == 1


async def test_an_attempt_that_is_not_higher_is_void(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        one, two = await scene.gateway("one"), await scene.gateway("two")
        await one.submit(request("a", attempt=2))
        await worker.got()
        await two.submit(request("a", attempt=2), request("a", attempt=1), request("b"))
        assert await worker.got() == ["b"]
        await worker.says(delta("a", 7, attempt=2))
        assert await one.tokens() == {"a": (7,)}


@pytest.mark.parametrize("how", ["finished", "aborted"])
async def test_a_delayed_older_attempt_does_not_start_what_has_left(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        gateway, late = await scene.gateway("one"), await scene.gateway("late")
        await gateway.submit(request("a", attempt=3))
        await worker.got()
        if how == "finished":
            await worker.says(delta("a", 7, attempt=3, finish=FinishReason.STOP))
            await gateway.tokens()
        else:
            await gateway.abort("a")
            assert await worker.aborted() == ("a",)
        await late.submit(request("a", attempt=2), request("b"))
        assert await worker.got() == ["b"]


async def test_a_higher_attempt_takes_over_and_the_older_owner_hears_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        one, two = await scene.gateway("one"), await scene.gateway("two")
        asked = request("a")
        await one.submit(asked, request("mine"))
        await worker.got()
        await worker.says(delta("a", 7, 8))
        await one.tokens()
        await two.submit(moved(asked, 1, (7,)))
        assert await two.tokens() == {"a": (8,)}
        await worker.says(delta("a", 9), delta("mine", 1))
        assert await two.tokens() == {"a": (9,)}
        assert await one.tokens() == {"mine": (1,)}


async def test_an_orphan_is_adopted_without_the_engine_noticing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        gone, heir = await scene.gateway("gone"), await scene.gateway("heir")
        asked = request("a")
        await gone.submit(asked, request("other"))
        await worker.got()
        await worker.says(delta("a", 7))
        await gone.tokens()
        await gone.dies()
        await worker.says(delta("a", 8), delta("a", 9))
        await heir.submit(request("probe"))
        assert await worker.got() == ["probe"]
        await worker.says(delta("probe", 1))
        assert await heir.tokens() == {"probe": (1,)}
        await heir.submit(moved(asked, 1 << 16))
        report = await heir.hears()
        assert isinstance(report, StepReport)
        (replay,) = report.deltas
        assert (replay.attempt, replay.tokens) == (1 << 16, (7, 8, 9))
        await worker.says(delta("a", 10, finish=FinishReason.LENGTH))
        report = await heir.hears()
        assert isinstance(report, StepReport)
        assert (report.deltas[0].attempt, report.deltas[0].finish) == (1 << 16, FinishReason.LENGTH)
        await heir.abort("probe")
        assert await worker.aborted() == ("probe",)


async def test_an_orphan_that_has_ended_is_told_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        gone, heir = await scene.gateway("gone"), await scene.gateway("heir")
        asked = request("a", logprobs=0)
        await gone.submit(asked)
        await worker.got()
        await gone.dies()
        scored = delta("a", 7, finish=FinishReason.STOP)
        scored.logprobs, scored.cached_tokens = (TokenLogprob(token=7, logprob=-1.0, rank=1),), 2
        await worker.says(scored)
        await turns(50)
        await heir.submit(moved(asked, 5))
        report = await heir.hears()
        assert isinstance(report, StepReport)
        (replay,) = report.deltas
        assert (replay.tokens, replay.finish, replay.cached_tokens) == ((7,), FinishReason.STOP, 2)
        assert replay.logprobs[0].logprob == -1.0


async def test_an_orphan_that_does_not_match_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        gone, heir = await scene.gateway("gone"), await scene.gateway("heir")
        await gone.submit(request("a", seed=1))
        await worker.got()
        await gone.dies()
        await heir.submit(request("a", attempt=1, seed=2))
        assert await worker.aborted() == ("a",)
        message = await worker.next()
        assert isinstance(message, Submit) and message.requests[0].attempt == 1
        await worker.says(delta("a", 3), delta("a", 4, attempt=1))
        assert await heir.tokens() == {"a": (4,)}


async def test_an_orphan_whose_time_is_over_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch, orphan_seconds=3) as scene:
        worker = await scene.worker()
        gone = await scene.gateway("gone")
        await gone.submit(request("a"))
        await worker.got()
        await gone.dies()
        await scene.clock.pass_time(4)
        assert await worker.aborted() == ("a",)


async def test_without_time_for_orphans_they_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch, orphan_seconds=0) as scene:
        worker = await scene.worker()
        gone = await scene.gateway("gone")
        await gone.submit(request("a"))
        await worker.got()
        await gone.dies()
        assert await worker.aborted() == ("a",)


async def test_a_gateway_that_is_back_may_abort_what_it_left_and_others_may_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        first = await scene.gateway("one", boot="x")
        await first.submit(request("a"), request("b"))
        await worker.got()
        await first.dies()
        reborn, again = await scene.gateway("one", boot="y"), await scene.gateway("one", boot="x")
        await reborn.abort("a")
        await turns()
        await again.abort("b")
        assert await worker.aborted() == ("b",)


async def test_what_was_asked_on_an_older_link_may_be_aborted_before_that_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        old = await scene.gateway("one", boot="x")
        await old.submit(request("a"))
        await worker.got()
        anew = await Gateway(scene.agent, "one", "x").attach()
        await anew.abort("a")
        assert await worker.aborted() == ("a",)


async def test_nobody_aborts_a_living_gateways_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        one, two = await scene.gateway("one"), await scene.gateway("two")
        await one.submit(request("a"))
        await worker.got()
        await two.abort("a")
        await two.submit(request("b"))
        assert await worker.got() == ["b"]


async def test_a_process_that_attaches_anew_ends_its_older_link(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        await scene.worker()
        old = await scene.gateway("one", boot="x")
        other = await scene.gateway("one", boot="y")
        await scene.gateway("one", boot="x")
        await old.closed()
        assert not other.serving.done()


async def test_a_silent_gateway_is_closed_and_a_beating_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch, silence=1) as scene:
        await scene.worker()
        silent, alive = await scene.gateway("silent"), await scene.gateway("alive")
        for number in range(1, 30):
            await alive.link.send(Beat(number=number, heard=number))
            await scene.clock.pass_time(0.25)
        await silent.closed()
        assert not alive.serving.done()


async def test_a_gateway_that_does_not_hear_us_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch, silence=1) as scene:
        await scene.worker()
        deaf = await scene.gateway("deaf")
        for number in range(1, 30):
            await deaf.link.send(Beat(number=number, heard=1))
            await scene.clock.pass_time(0.25)
        await deaf.closed()


async def test_beats_carry_the_newest_number_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        gateway = await scene.gateway()
        await gateway.link.send(Beat(number=41, heard=0))
        await turns()
        await scene.clock.pass_time(0.5)
        await gateway.submit(request("a"))
        await worker.got()
        await worker.says(delta("a", 1))
        await gateway.tokens()
        assert [beat.heard for beat in gateway.beats] == [41, 41]


class Clogged:
    """A link that takes nothing, and says one thing."""

    def __init__(self) -> None:
        self.closed = False

    async def send(self, message: object) -> None:
        await asyncio.Event().wait()

    async def receive(self) -> object:
        if self.closed:
            await asyncio.Event().wait()
        self.closed = True
        return Attach(wire_version=1, gateway="slow", boot="1")

    async def close(self) -> None:
        return


async def test_a_link_that_does_not_keep_up_is_given_up() -> None:
    link = GatewayLink(Clogged(), HandClock(), None)  # type: ignore[arg-type]
    serving = asyncio.create_task(link.serve(lambda message: None))
    await turns()
    for _ in range(MOST_WAITING + 2):
        link.tell(StepReport(deltas=(delta("a", 1),)))
    await asyncio.wait_for(serving, 10)
    assert link.idle


async def test_a_slow_link_does_not_delay_another(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        slow = asyncio.create_task(scene.agent.serve_link(Clogged()))  # type: ignore[arg-type]
        gateway = await scene.gateway()
        await gateway.submit(request("a"))
        await worker.got()
        for token in range(100):
            await worker.says(delta("a", token))
        heard: list[int] = []
        while len(heard) < 100:
            heard += (await gateway.tokens())["a"]
        assert heard == list(range(100))
        assert not slow.done()
        slow.cancel()


@pytest.mark.parametrize("first", [Abort(request_ids=("a",)), Attach(wire_version=9, gateway="g", boot="1")])
async def test_a_link_that_begins_wrongly_is_closed(monkeypatch: pytest.MonkeyPatch, first: Abort | Attach) -> None:
    async with world(monkeypatch) as scene:
        await scene.worker()
        gateway = await scene.gateway()
        stranger = type(gateway)(scene.agent, "stranger", "1")
        await stranger.link.send(first)
        await stranger.closed()
        assert not gateway.serving.done()
