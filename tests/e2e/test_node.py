"""`istack node` as a process: what it prints, whom it serves, and how it leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from inference_stack.core.fleet import NodeState
from inference_stack.core.request import Continuation, Request, SamplingParams
from inference_stack.core.seams import LinkClosed
from inference_stack.wire.grpc.dial import dial
from inference_stack.wire.grpc.tls import Tls
from inference_stack.wire.messages import WIRE_VERSION, Attach, Beat, Lost, StepReport, Submit

pytestmark = pytest.mark.model
NODE = ("node", "smollm2", "--engine", "simulated", "--preset", "a100-80", "--preset-model", "llama-3.1-8b")
PATIENCE = 60


class Node:
    """A node process and one gateway's link to it, which keeps beating."""

    def __init__(self, child: subprocess.Popen[str], port: int) -> None:
        self.child = child
        self.port = port
        self.link: Any = None
        self.beating: asyncio.Task[None]

    async def attach(self) -> NodeState:
        """Its state once it is ready."""
        self.link = await dial(f"127.0.0.1:{self.port}", Tls())
        await self.link.send(Attach(wire_version=WIRE_VERSION, gateway="g", boot="1"))
        self.beating = asyncio.create_task(self._beat())
        return await self.hears(NodeState, lambda state: state.ready)

    async def _beat(self) -> None:
        number = 0
        try:
            while True:
                number += 1
                await self.link.send(Beat(number=number, heard=1 << 40))
                await asyncio.sleep(0.25)
        except LinkClosed:
            return

    async def hears(self, kind: type, fits: Any = lambda message: True) -> Any:
        async with asyncio.timeout(PATIENCE):
            while True:
                message = await self.link.receive()
                if isinstance(message, kind) and fits(message):
                    return message

    async def begin(self, tokens: int) -> None:
        """A request that has emitted its first token."""
        known = Continuation(prompt=(1, 2, 3), params=SamplingParams(max_tokens=tokens, ignore_eos=True), seed=1)
        await self.link.send(Submit(requests=(Request(id="a", model="smollm2", continuation=known),)))
        await self.hears(StepReport, lambda report: any(delta.tokens for delta in report.deltas))

    async def left(self) -> int:
        return await asyncio.to_thread(self.child.wait, PATIENCE)


@asynccontextmanager
async def node(*options: str) -> AsyncIterator[Node]:
    command = [
        sys.executable,
        "-m",
        "inference_stack.cli.main",
        *NODE,
        "--listen",
        "127.0.0.1:0",
        "--name",
        "n1",
        *options,
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        line = await asyncio.to_thread(child.stdout.readline)
        assert line.startswith("node n1 listening on 127.0.0.1:")
        yield Node(child, int(line.rpartition(":")[2]))
    finally:
        child.kill()
        child.wait()


@pytest.mark.usefixtures("demo_model")
async def test_a_node_serves_and_leaves_when_its_requests_have_ended() -> None:
    async with node("--workers", "2") as one:
        state = await one.attach()
        assert (state.node, [model.name for model in state.models]) == ("n1", ["smollm2"])
        await one.begin(tokens=60)
        one.child.send_signal(signal.SIGTERM)
        await one.hears(NodeState, lambda state: state.draining)
        await one.hears(StepReport, lambda report: any(delta.finish for delta in report.deltas))
        assert await one.left() == 0


@pytest.mark.usefixtures("demo_model")
async def test_what_does_not_end_in_time_is_told_to_move() -> None:
    async with node("--node-drain-seconds", "0.2") as one:
        await one.attach()
        await one.begin(tokens=4000)
        one.child.send_signal(signal.SIGTERM)
        lost = await one.hears(Lost)
        assert (lost.request_ids, lost.reason, lost.present) == (("a",), "drained", False)
        assert await one.left() == 0


@pytest.mark.usefixtures("demo_model")
async def test_a_second_signal_ends_it_at_once() -> None:
    async with node("--node-drain-seconds", "3600") as one:
        await one.attach()
        await one.begin(tokens=8000)
        one.child.send_signal(signal.SIGTERM)
        await one.hears(NodeState, lambda state: state.draining)
        one.child.send_signal(signal.SIGTERM)
        assert await one.left() == 0


@pytest.mark.slow
@pytest.mark.usefixtures("demo_model")
async def test_a_simulated_node_loads_no_torch() -> None:
    async with node() as one:
        state = await one.attach()
        for pid in (one.child.pid, state.workers[0].pid):
            if os.path.exists(f"/proc/{pid}/maps"):
                assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()


def test_a_port_that_is_taken_is_one_line_and_a_status(demo_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "inference_stack.cli.main", *NODE, "--listen", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert address in done.stderr.splitlines()[-1]
