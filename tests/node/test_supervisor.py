"""A supervisor and workers played by the test: real processes to kill, real sockets, and messages by hand."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from inference_stack.config.tree import Config, NodeConfig
from inference_stack.core.errors import ErrorInfo
from inference_stack.core.request import Continuation, FinishReason, Request, SamplingParams
from inference_stack.core.seams import SystemClock
from inference_stack.core.stats import Ledger
from inference_stack.core.step import TokenDelta
from inference_stack.node import process
from inference_stack.node.spawn import Spawned
from inference_stack.node.supervisor import Supervisor
from inference_stack.wire.channel import StreamLink
from inference_stack.wire.messages import Abort, Configure, Fatal, Lost, Ready, StepReport, Submit


class Stage:
    """A supervisor, what it reported, and the test's ends of its workers' links."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.workers: asyncio.Queue[Spawned] = asyncio.Queue()
        self.reports: asyncio.Queue[StepReport | Lost] = asyncio.Queue()
        self.changed = asyncio.Event()
        monkeypatch.setattr(process, "spawn", self.spawn)
        config = Config(node=NodeConfig(heartbeat_seconds=60, max_start_failures=2))
        self.supervisor = Supervisor(config, SystemClock(), self.reports.put_nowait, self.changed.set)

    def spawn(self, engine: str, cores: Sequence[int] = ()) -> Spawned:
        ours, theirs = socket.socketpair()
        child = subprocess.Popen(["sleep", "600"])
        self.workers.put_nowait(Spawned(child, theirs))
        return Spawned(child, ours)

    async def worker(self) -> tuple[StreamLink, subprocess.Popen[bytes], Configure]:
        """The next worker, configured."""
        spawned = await asyncio.wait_for(self.workers.get(), 10)
        link = await StreamLink.over(spawned.sock)
        configure = await link.receive()
        assert isinstance(configure, Configure)
        return link, spawned.child, configure

    async def until(self, state: str) -> None:
        while self.supervisor.condition.state != state:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 10)

    async def report(self) -> StepReport | Lost:
        return await asyncio.wait_for(self.reports.get(), 10)


@asynccontextmanager
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    scene = Stage(monkeypatch)
    task = asyncio.create_task(scene.supervisor.run())
    yield scene
    await scene.supervisor.stop(0)
    await asyncio.wait_for(task, 10)


READY = Ready(models=(), ledger=Ledger(), kv_memory=12345)


def submit(*names: str, tokens: int = 3) -> Submit:
    known = Continuation(prompt=tuple(range(tokens)), params=SamplingParams(), seed=0)
    return Submit(requests=tuple(Request(id=name, model="m", continuation=known) for name in names))


async def die(link: StreamLink, child: subprocess.Popen[bytes]) -> None:
    child.kill()
    await link.close()


async def test_requests_without_a_worker_come_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(monkeypatch) as scene:
        await scene.worker()
        scene.supervisor.submit(submit("a", "b"))
        lost = await scene.report()
        assert isinstance(lost, Lost) and lost.request_ids == ("a", "b") and not lost.present


async def test_requests_on_a_worker_that_dies_are_lost_and_finished_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with stage(monkeypatch) as scene:
        link, child, _ = await scene.worker()
        await link.send(READY)
        await scene.until("ready")
        scene.supervisor.submit(submit("done", "running", "aborted"))
        assert await link.receive() == submit("done", "running", "aborted")
        scene.supervisor.abort(("aborted",))
        assert await link.receive() == Abort(request_ids=("aborted",))
        await link.send(StepReport(deltas=(TokenDelta(request_id="done", finish=FinishReason.STOP),)))
        assert isinstance(await scene.report(), StepReport)
        await die(link, child)
        lost = await scene.report()
        assert isinstance(lost, Lost) and lost.request_ids == ("running",) and lost.present
        assert scene.supervisor.condition.restarts == 1


async def test_a_batch_that_a_hung_worker_never_read_is_lost_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [str(number) for number in range(64)]
    async with stage(monkeypatch) as scene:
        link, child, _ = await scene.worker()
        await link.send(READY)
        await scene.until("ready")
        scene.supervisor.submit(submit(*names, tokens=20_000))
        await asyncio.sleep(0)
        await die(link, child)
        lost: list[str] = []
        while len(lost) < len(names):
            report = await scene.report()
            assert isinstance(report, Lost)
            lost += report.request_ids
        assert sorted(lost) == sorted(names)


async def test_a_successor_gets_the_memory_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(monkeypatch) as scene:
        link, child, first = await scene.worker()
        assert first.config["engine"]["kv_memory"] == "auto"
        await link.send(READY)
        await scene.until("ready")
        await die(link, child)
        _, _, second = await scene.worker()
        assert second.config["engine"]["kv_memory"] == "12345"


async def test_a_worker_that_says_why_it_cannot_start_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(monkeypatch) as scene:
        link, child, _ = await scene.worker()
        await link.send(Fatal(error=ErrorInfo(message="no such architecture")))
        await die(link, child)
        await scene.until("failed")
        error = scene.supervisor.condition.error
        assert error is not None and error.message == "no such architecture"
        assert scene.workers.empty()


async def test_starts_that_come_to_nothing_end_in_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(monkeypatch) as scene:
        for _ in range(2):
            link, child, _ = await scene.worker()
            await die(link, child)
        await scene.until("failed")
        assert scene.supervisor.condition.error is not None


async def test_a_machine_that_cannot_spawn_fails_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(engine: str, cores: Sequence[int]) -> Spawned:
        raise OSError("out of processes")

    async with stage(monkeypatch) as scene:
        link, child, _ = await scene.worker()
        monkeypatch.setattr(process, "spawn", refuse)
        await die(link, child)
        await scene.until("failed")
        error = scene.supervisor.condition.error
        assert error is not None and "out of processes" in error.message
