"""A node agent between gateways and workers that are played by the test: messages by hand, time by hand, processes to kill."""

from __future__ import annotations

import asyncio
import heapq
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from inference_stack.config.tree import Config, GatewayConfig, ModelEntry, NodeConfig
from inference_stack.core.fleet import ModelInfo, NodeState
from inference_stack.core.request import Continuation, FinishReason, Request, SamplingParams
from inference_stack.core.seams import LinkClosed
from inference_stack.core.stats import InstanceStats, Ledger
from inference_stack.core.step import TokenDelta
from inference_stack.node import process
from inference_stack.node.agent import NodeAgent
from inference_stack.node.spawn import Spawned
from inference_stack.wire.channel import StreamLink
from inference_stack.wire.memory import memory_pair
from inference_stack.wire.messages import Abort, Attach, Beat, Configure, Lost, Ready, StepReport, Submit

PATIENCE = 10


class HandClock:
    """Time passes when the test says so."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return 1e9 + self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            return await asyncio.sleep(0)
        self._count += 1
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, self._count, future))
        await future

    async def pass_time(self, seconds: float, step: float = 0.125) -> None:
        """In small steps, everybody getting a turn after each."""
        until = self._now + seconds
        while self._now < until:
            self._now = min(until, self._now + step)
            while self._sleepers and self._sleepers[0][0] <= self._now:
                future = heapq.heappop(self._sleepers)[2]
                if not future.done():
                    future.set_result(None)
            await turns()


async def turns(count: int = 20) -> None:
    """Let every task go as far as it can."""
    for _ in range(count):
        await asyncio.sleep(0)


def info(name: str = "m", numerics: str = "n", places: int = 8) -> ModelInfo:
    return ModelInfo(
        name=name,
        architecture="llama",
        numerics_id=numerics,
        max_model_len=100,
        vocab_size=1000,
        eos_tokens=(),
        kv_groups=(),
        kv_blocks=10,
        max_running=places,
    )


def request(name: str, attempt: int = 0, emitted: tuple[int, ...] = (), **changes: Any) -> Request:
    """A request; `changes` are of its continuation, its parameters or itself."""
    params = {key: changes.pop(key) for key in list(changes) if key in SamplingParams.__dataclass_fields__}
    inner = {key: changes.pop(key) for key in list(changes) if key in Continuation.__dataclass_fields__}
    known = Continuation(
        **{"prompt": (1, 2, 3), "params": SamplingParams(**params), "seed": 5, "emitted": emitted, **inner}
    )
    return Request(**{"id": name, "model": "m", "continuation": known, "attempt": attempt, **changes})


class Worker:
    """The test's end of a worker's link, and a process that can be killed."""

    def __init__(self, link: StreamLink, child: subprocess.Popen[bytes], configure: Configure) -> None:
        self.link = link
        self.child = child
        self.configure = configure

    @property
    def models(self) -> list[str]:
        """What it was told to serve."""
        return [entry["name"] for entry in self.configure.config["models"]]

    async def serves(self, *models: ModelInfo) -> None:
        await self.link.send(Ready(models=models or (info(),), ledger=Ledger(), kv_memory=12345))

    async def next(self) -> Any:
        return await asyncio.wait_for(self.link.receive(), PATIENCE)

    async def got(self) -> list[str]:
        """The ids of the next Submit."""
        message = await self.next()
        assert isinstance(message, Submit), message
        return [one.id for one in message.requests]

    async def aborted(self) -> tuple[str, ...]:
        message = await self.next()
        assert isinstance(message, Abort), message
        return message.request_ids

    async def says(self, *deltas: TokenDelta, stats: tuple[InstanceStats, ...] = ()) -> None:
        await self.link.send(StepReport(deltas=deltas, stats=stats))

    async def dies(self) -> None:
        self.child.kill()
        await self.link.close()


def delta(name: str, *tokens: int, attempt: int = 0, finish: FinishReason | None = None) -> TokenDelta:
    return TokenDelta(request_id=name, attempt=attempt, tokens=tokens, finish=finish)


class Gateway:
    """The test's end of a gateway's link."""

    def __init__(self, agent: NodeAgent, name: str, boot: str) -> None:
        self.link, far = memory_pair()
        self.serving = asyncio.create_task(agent.serve_link(far))
        self.name, self.boot = name, boot
        self.states: list[NodeState] = []
        self.beats: list[Beat] = []

    async def attach(self) -> Gateway:
        await self.link.send(Attach(wire_version=1, gateway=self.name, boot=self.boot))
        return self

    async def submit(self, *requests: Request) -> None:
        await self.link.send(Submit(requests=requests))

    async def abort(self, *ids: str) -> None:
        await self.link.send(Abort(request_ids=ids))

    async def hears(self) -> StepReport | Lost:
        """The next news of requests."""
        while True:
            message = await asyncio.wait_for(self.link.receive(), PATIENCE)
            if isinstance(message, NodeState):
                self.states.append(message)
            elif isinstance(message, Beat):
                self.beats.append(message)
            elif isinstance(message, Lost) or message.deltas:
                return message

    async def tokens(self) -> dict[str, tuple[int, ...]]:
        """The next tokens, by request."""
        report = await self.hears()
        assert isinstance(report, StepReport), report
        return {one.request_id: one.tokens for one in report.deltas}

    async def lost(self) -> Lost:
        message = await self.hears()
        assert isinstance(message, Lost), message
        return message

    async def state(self, fits: Callable[[NodeState], bool]) -> NodeState:
        """The first state that fits, from the last one heard on."""
        while not (self.states and fits(self.states[-1])):
            message = await asyncio.wait_for(self.link.receive(), PATIENCE)
            if isinstance(message, NodeState):
                self.states.append(message)
        return self.states[-1]

    async def closed(self) -> None:
        """Wait until the node has ended the link."""
        await asyncio.wait_for(self.serving, PATIENCE)
        with pytest.raises(LinkClosed):
            while True:
                await asyncio.wait_for(self.link.receive(), PATIENCE)

    async def dies(self) -> None:
        await self.link.close()
        await asyncio.wait_for(self.serving, PATIENCE)


class World:
    """A node and what is around it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
        self.clock = HandClock()
        self._spawned: asyncio.Queue[Spawned] = asyncio.Queue()
        monkeypatch.setattr(process, "spawn", self._spawn)
        self.agent = NodeAgent("node", config, self.clock)
        self._kept: list[Worker | Gateway] = []

    def _spawn(self, engine: str, cores: Sequence[int] = ()) -> Spawned:
        ours, theirs = socket.socketpair()
        child = subprocess.Popen(["sleep", "600"])
        self._spawned.put_nowait(Spawned(child, theirs))
        return Spawned(child, ours)

    async def worker(self, ready: bool = True, *models: ModelInfo) -> Worker:
        """The next worker that the node starts."""
        spawned = await asyncio.wait_for(self._spawned.get(), PATIENCE)
        link = await StreamLink.over(spawned.sock)
        configure = await asyncio.wait_for(link.receive(), PATIENCE)
        assert isinstance(configure, Configure)
        worker = Worker(link, spawned.child, configure)
        self._kept.append(worker)
        if ready:
            await worker.serves(*models)
        return worker

    async def workers(self, count: int) -> list[Worker]:
        return [await self.worker() for _ in range(count)]

    async def gateway(self, name: str = "g", boot: str = "1", ready: int = 1) -> Gateway:
        """An attached gateway that knows of so many workers that are ready."""
        gateway = await Gateway(self.agent, name, boot).attach()
        self._kept.append(gateway)
        await gateway.state(lambda state: sum(one.state == "ready" for one in state.workers) >= ready)
        return gateway


def config(workers: int = 1, silence: float = 1e6, **node: Any) -> Config:
    return Config(
        models=(ModelEntry(model="/m", name="m"),),
        node=NodeConfig(engine="simulated", workers=workers, heartbeat_seconds=1e6, **node),
        gateway=GatewayConfig(silence_seconds=silence),
    )


@asynccontextmanager
async def world(
    monkeypatch: pytest.MonkeyPatch, workers: int = 1, silence: float = 1e6, **node: Any
) -> AsyncIterator[World]:
    scene = World(monkeypatch, config(workers, silence, **node))
    running = asyncio.create_task(scene.agent.run())
    try:
        yield scene
    finally:
        ending = asyncio.gather(scene.agent.stop(0), running)
        async with asyncio.timeout(PATIENCE):
            while not ending.done():
                await scene.clock.pass_time(0.5)
                await asyncio.sleep(0.001)
        await ending


def moved(one: Request, attempt: int, emitted: tuple[int, ...] = ()) -> Request:
    """A later attempt at the same request."""
    return replace(one, attempt=attempt, continuation=replace(one.continuation, emitted=emitted))
