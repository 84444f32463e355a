"""Several workers on one node: who gets what, who runs alone, and what a death takes with it."""

import asyncio
from dataclasses import replace

import pytest

from inference_stack.core.errors import ErrorInfo
from inference_stack.core.request import FinishReason, Qos
from inference_stack.core.stats import InstanceStats
from inference_stack.node.placement import Placement, Slot
from inference_stack.wire.messages import Fatal, StepReport, Submit
from tests.node.world import Gateway, Worker, delta, info, request, turns, world


async def placed(worker: Worker, gateway: Gateway, name: str, **changes: object) -> None:
    await gateway.submit(request(name, **changes))
    assert await worker.got() == [name]


async def test_a_death_takes_only_what_was_on_that_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch, workers=2) as scene:
        first, second = await scene.workers(2)
        gateway = await scene.gateway(ready=2)
        await placed(first, gateway, "a")
        await placed(second, gateway, "b")
        await first.dies()
        lost = await gateway.lost()
        assert (lost.request_ids, lost.present) == (("a",), True)
        await second.says(delta("b", 4))
        assert await gateway.tokens() == {"b": (4,)}


async def test_the_less_loaded_worker_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch, workers=2) as scene:
        first, second = await scene.workers(2)
        gateway = await scene.gateway(ready=2)
        await placed(first, gateway, "long", prompt=tuple(range(2000)))
        for name in "abc":
            await placed(second, gateway, name)


async def test_a_node_is_its_workers_together(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch, workers=3) as scene:
        await scene.worker(True, info("m", "same"))
        await scene.worker(True, info("m", "same"))
        await scene.worker(True, info("m", "other"))
        gateway = await scene.gateway(ready=3)
        models = {one.numerics_id: (one.max_running, one.kv_blocks) for one in gateway.states[-1].models}
        assert models == {"same": (16, 20), "other": (8, 10)}


async def test_numbers_of_workers_are_summed_and_outlive_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch, workers=2) as scene:
        first, second = await scene.workers(2)
        gateway = await scene.gateway(ready=2)

        async def told() -> tuple[int, int]:
            report = await asyncio.wait_for(gateway.link.receive(), 10)
            while not isinstance(report, StepReport):
                report = await asyncio.wait_for(gateway.link.receive(), 10)
            return report.stats[0].running, report.stats[0].generation_tokens

        await first.says(stats=(InstanceStats(model="m", running=1, generation_tokens=10),))
        assert await told() == (1, 10)
        await second.says(stats=(InstanceStats(model="m", running=2, generation_tokens=5),))
        assert await told() == (3, 15)
        await first.dies()
        await gateway.state(lambda state: state.workers[0].state == "starting")
        await second.says(stats=(InstanceStats(model="m", running=2, generation_tokens=6),))
        assert await told() == (2, 16)


async def test_a_worker_that_cannot_start_leaves_the_node_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch, workers=2) as scene:
        bad = await scene.worker(ready=False)
        good = await scene.worker()
        await bad.link.send(Fatal(error=ErrorInfo(message="no room")))
        await bad.dies()
        gateway = await scene.gateway()
        state = await gateway.state(lambda state: state.workers[0].state == "failed")
        assert state.ready and state.error is None
        await placed(good, gateway, "a")


async def test_a_node_whose_workers_all_failed_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        bad = await scene.worker(ready=False)
        await bad.link.send(Fatal(error=ErrorInfo(message="no room")))
        await bad.dies()
        gateway = await scene.gateway(ready=0)
        state = await gateway.state(lambda state: state.error is not None)
        assert state.error is not None and state.error.message == "no room" and not state.ready


async def test_without_a_worker_requests_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        await scene.worker(ready=False)
        gateway = await scene.gateway(ready=0)
        await gateway.submit(request("a"))
        lost = await gateway.lost()
        assert (lost.request_ids, lost.present) == (("a",), False)


async def test_an_isolated_request_gets_an_empty_worker_and_keeps_it_until_its_first_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(monkeypatch, workers=2) as scene:
        first, second = await scene.workers(2)
        gateway = await scene.gateway(ready=2)
        await placed(first, gateway, "a")
        await placed(second, gateway, "suspect", isolated=True)
        await placed(first, gateway, "b")
        await placed(first, gateway, "c")
        await second.says(delta("suspect", 1))
        await gateway.tokens()
        await placed(second, gateway, "d")


async def test_an_isolated_request_waits_for_a_worker_to_be_empty_and_others_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        gateway = await scene.gateway()
        await placed(worker, gateway, "a")
        await gateway.submit(request("suspect", isolated=True))
        await gateway.submit(request("b"))
        await turns()
        await worker.says(delta("a", 1, finish=FinishReason.STOP))
        assert await worker.got() == ["suspect"]
        await gateway.tokens()
        await worker.says(delta("suspect", 1))
        assert await worker.got() == ["b"]


async def test_an_isolated_request_dies_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        gateway = await scene.gateway()
        await placed(worker, gateway, "suspect", isolated=True)
        await gateway.submit(request("b"))
        await turns()
        await worker.dies()
        fates = {(one.request_ids, one.present) for one in [await gateway.lost(), await gateway.lost()]}
        assert fates == {(("suspect",), True), (("b",), False)}


async def test_deadlines_of_held_requests_come_closer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        gateway = await scene.gateway()
        await placed(worker, gateway, "suspect", isolated=True)
        await gateway.submit(replace(request("b"), qos=Qos(deadline=9.0)))
        await turns()
        await scene.clock.pass_time(1.5)
        await worker.says(delta("suspect", 1))
        message = await worker.next()
        assert isinstance(message, Submit)
        assert message.requests[0].qos.deadline == pytest.approx(7.5)
        assert message.requests[0].arrival == pytest.approx(1.5)


def test_without_a_choice_nothing_is_weighed() -> None:
    class Ready:
        ready = True
        condition = type("Condition", (), {"models": (info(),)})

    slot = Slot(Ready())  # type: ignore[arg-type]
    placement = Placement((slot,), 512)
    assert placement.serves("m") and not placement.serves("other")
