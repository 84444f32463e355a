"""A node that is drained, and one whose models change."""

import asyncio
from pathlib import Path

import pytest

from inference_stack.artifacts.files import ModelFiles
from inference_stack.core.errors import ErrorInfo, InferenceError
from inference_stack.core.fleet import NodeState
from inference_stack.core.request import FinishReason
from inference_stack.node import models
from inference_stack.wire.messages import DrainNode, Fatal, LoadModel, Lost, UnloadModel
from tests.node.world import delta, info, request, turns, world


async def test_draining_is_told_before_requests_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        await scene.worker()
        gateway = await scene.gateway()
        await gateway.link.send(DrainNode(seconds=30))
        await gateway.submit(request("a"))
        first = await asyncio.wait_for(gateway.link.receive(), 10)
        second = await asyncio.wait_for(gateway.link.receive(), 10)
        assert isinstance(first, NodeState) and first.draining
        assert second == Lost(request_ids=("a",), reason="draining", present=False)


async def test_what_runs_may_end_and_the_rest_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        gateway = await scene.gateway()
        await gateway.submit(request("quick"), request("slow"))
        await worker.got()
        draining = asyncio.create_task(scene.agent.drain(5))
        await turns()
        await worker.says(delta("quick", 1, finish=FinishReason.STOP))
        assert await gateway.tokens() == {"quick": (1,)}
        await scene.clock.pass_time(4)
        assert not draining.done()
        await scene.clock.pass_time(2)
        await asyncio.wait_for(draining, 10)
        assert await gateway.lost() == Lost(request_ids=("slow",), reason="drained", present=False)
        assert await worker.aborted() == ("slow",)


async def test_a_drain_ends_with_the_last_request_and_does_not_wait_for_orphans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        gone, gateway = await scene.gateway("gone"), await scene.gateway("here")
        await gone.submit(request("orphan"))
        await worker.got()
        await gone.dies()
        await gateway.submit(request("a"))
        await worker.got()
        draining = asyncio.create_task(scene.agent.drain(1000))
        await worker.says(delta("a", 1, finish=FinishReason.STOP))
        await gateway.tokens()
        await scene.clock.pass_time(1)
        await asyncio.wait_for(draining, 10)


async def test_a_node_that_leaves_cannot_be_told_to_serve_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        gateway = await scene.gateway()
        await gateway.submit(request("running"))
        await worker.got()
        leaving = asyncio.create_task(scene.agent.drain(1000))
        await gateway.state(lambda state: state.draining)
        await gateway.link.send(DrainNode(seconds=0, undo=True))
        await gateway.submit(request("late"))
        assert await gateway.lost() == Lost(request_ids=("late",), reason="draining", present=False)
        await worker.says(delta("running", 1, finish=FinishReason.STOP))
        await gateway.tokens()
        await scene.clock.pass_time(1)
        await asyncio.wait_for(leaving, 10)


async def test_a_drain_can_be_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        gateway, other = await scene.gateway("one"), await scene.gateway("two")
        await other.submit(request("running"))
        await worker.got()
        await gateway.link.send(DrainNode(seconds=5))
        await other.state(lambda state: state.draining)
        await gateway.link.send(DrainNode(seconds=0, undo=True))
        await other.state(lambda state: not state.draining)
        await gateway.submit(request("a"))
        assert await worker.got() == ["a"]
        await scene.clock.pass_time(10)
        await worker.says(delta("running", 1))
        assert await other.tokens() == {"running": (1,)}


def _resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(model: str, folder: Path, load_format: str) -> ModelFiles:
        if model == "unknown":
            raise InferenceError(ErrorInfo(message="no such model"))
        return ModelFiles(kind="gguf", name=model, root=Path("/"), weights=(Path("/") / f"{model}.gguf",))

    monkeypatch.setattr(models, "resolve", resolve)


async def test_a_model_is_loaded_worker_by_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    _resolves(monkeypatch)
    async with world(monkeypatch, workers=2) as scene:
        first, second = await scene.workers(2)
        gateway = await scene.gateway(ready=2)
        for name, worker in (("a", first), ("b", second)):
            await gateway.submit(request(name))
            assert await worker.got() == [name]
        await gateway.link.send(LoadModel(model="other", name="x"))
        assert (await gateway.lost()).request_ids == ("a",)
        third = await scene.worker(True, info("m"), info("x"))
        assert third.models == ["m", "x"]
        lost = await gateway.lost()
        assert (lost.request_ids, lost.present) == (("b",), False)
        await scene.worker(True, info("m"), info("x"))
        state = await gateway.state(lambda state: all(one.state == "ready" for one in state.workers))
        assert [one.name for one in state.models] == ["m", "x"]
        assert [one.restarts for one in state.workers] == [0, 0]


async def test_a_model_is_unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    _resolves(monkeypatch)
    async with world(monkeypatch) as scene:
        await scene.worker()
        gateway = await scene.gateway()
        await gateway.link.send(LoadModel(model="x"))
        await scene.worker(True, info("m"), info("x"))
        await gateway.state(lambda state: len(state.models) == 2)
        await gateway.link.send(UnloadModel(name="m"))
        assert (await scene.worker(True, info("x"))).models == ["x"]
        state = await gateway.state(lambda state: state.ready and len(state.models) == 1)
        assert state.models[0].name == "x"


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (LoadModel(model="unknown"), "no such model"),
        (UnloadModel(name="nothing"), "nothing"),
        (UnloadModel(name="m"), "only model"),
    ],
)
async def test_what_cannot_be_done_is_told_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, order: LoadModel | UnloadModel, reason: str
) -> None:
    _resolves(monkeypatch)
    async with world(monkeypatch) as scene:
        worker = await scene.worker()
        gateway = await scene.gateway()
        await gateway.submit(request("a"))
        await worker.got()
        await gateway.link.send(order)
        state = await gateway.state(lambda state: reason in state.workers[0].reason)
        assert state.ready
        await worker.says(delta("a", 1))
        assert await gateway.tokens() == {"a": (1,)}


async def test_a_model_that_does_not_load_leaves_the_old_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    _resolves(monkeypatch)
    async with world(monkeypatch) as scene:
        await scene.worker()
        gateway = await scene.gateway()
        await gateway.link.send(LoadModel(model="broken"))
        broken = await scene.worker(ready=False)
        await broken.link.send(Fatal(error=ErrorInfo(message="bad tensor")))
        await broken.dies()
        again = await scene.worker()
        assert again.models == ["m"]
        state = await gateway.state(lambda state: state.ready and "bad tensor" in state.workers[0].reason)
        assert [one.name for one in state.models] == ["m"]
        assert all(state.error is None for state in gateway.states)
        await gateway.submit(request("a"))
        assert await again.got() == ["a"]
