"""The agent of one machine: passes requests to its worker and tokens to its gateway, and tells of every change.

It never looks into a request; what is lost with a worker is the gateway's to continue.
"""

from __future__ import annotations

import asyncio

from inference_stack.config.tree import Config
from inference_stack.core.fleet import NodeState
from inference_stack.core.seams import Clock, Link, LinkClosed
from inference_stack.node.spawn import Spawned
from inference_stack.node.supervisor import Supervisor
from inference_stack.wire.messages import Abort, FromNode, Submit, ToNode


class NodeAgent:
    """Serves one gateway over `link` with the worker that it supervises; `first` is one that was spawned ahead."""

    def __init__(
        self,
        name: str,
        config: Config,
        link: Link[FromNode, ToNode],
        clock: Clock,
        first: Spawned | None = None,
    ) -> None:
        self._name = name
        self._link = link
        self._outbox: asyncio.Queue[FromNode] = asyncio.Queue()
        self._supervisor = Supervisor(config, clock, self._outbox.put_nowait, self._tell_state, first)

    async def run(self) -> None:
        """Work until the gateway's link closes or the task is cancelled; the worker does not outlive it."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._supervisor.run())
                tasks.create_task(self._send_reports())
                tasks.create_task(self._take_orders())
        finally:
            await self._link.close()

    async def stop(self, seconds: float) -> None:
        """Let running requests finish for up to `seconds`, then end the worker."""
        await self._supervisor.stop(seconds)

    async def _take_orders(self) -> None:
        try:
            while True:
                await self._obey(await self._link.receive())
        except LinkClosed:
            await self._supervisor.stop(0)

    async def _obey(self, message: ToNode) -> None:
        match message:
            case Submit():
                await self._supervisor.submit(message)
            case Abort(request_ids=request_ids):
                await self._supervisor.abort(request_ids)

    async def _send_reports(self) -> None:
        try:
            while True:
                await self._link.send(await self._outbox.get())
        except LinkClosed:
            return

    def _tell_state(self) -> None:
        supervisor = self._supervisor
        ready = supervisor.ready
        self._outbox.put_nowait(
            NodeState(
                node=self._name,
                ready=ready,
                models=supervisor.condition.models if ready else (),
                workers=(supervisor.describe(),),
                ledgers=(supervisor.condition.ledger,) if ready else (),
                error=supervisor.condition.error if supervisor.condition.state == "failed" else None,
            )
        )
