"""`istack serve` put together: gateway and node in this process, the worker in another, one in-memory link between.

uvicorn ─ app ─ Fleet ══ MemoryLink ══ NodeAgent ─ worker process
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from rich.console import Console
from starlette.applications import Starlette

from inference_stack.artifacts.files import ModelFiles
from inference_stack.cli.admin_server import admin_server
from inference_stack.cli.http import GatewayServer
from inference_stack.cli.ledger import print_ledger
from inference_stack.cli.models import fetch_served, placed
from inference_stack.config.tree import Config
from inference_stack.core.errors import ErrorInfo, invalid, unavailable
from inference_stack.core.fleet import NodeState
from inference_stack.core.seams import SystemClock
from inference_stack.dispatch.dispatcher import Limits
from inference_stack.frontend.load import load_frontend
from inference_stack.gateway.admin import requests_json
from inference_stack.gateway.app import create_app
from inference_stack.gateway.fleet import Fleet
from inference_stack.gateway.resume import resume_secret
from inference_stack.node.agent import NodeAgent
from inference_stack.node.spawn import Spawned
from inference_stack.telemetry.logs import set_up_logs
from inference_stack.telemetry.metrics import Metrics
from inference_stack.telemetry.startup import process_start
from inference_stack.wire.memory import memory_pair

WORKER_STOP_SECONDS = 2.0
UNREAD_SECONDS = 60
"""How long a client may leave what was sent to it unread, or unacknowledged, before its connection is cut: until then its answer
waits in memory."""


def dispatch_limits(config: Config) -> Limits:
    """What the configuration says to a dispatcher."""
    return Limits(
        max_queue=config.server.max_queue,
        recovery_tokens=config.gateway.recovery_tokens,
        fail_on_mismatch=config.gateway.on_mismatch == "fail",
    )


class Announcer:
    """Tells people when the server is ready, with the ledger. `started` is when this process began, on `clock`."""

    def __init__(self, console: Console, clock: SystemClock, started: float, url: str, simulated: bool) -> None:
        self._console = console
        self._clock = clock
        self._started = started
        self._url = url
        self._simulated = simulated
        self._told = False

    def __call__(self, state: NodeState) -> None:
        if not state.ready or self._told:
            return
        self._told = True
        worker = state.ledgers[0]
        total = self._clock.now() - self._started
        before = (
            "set-up and python, until the worker began",
            process_start(self._clock, state.workers[0].pid) - self._started,
        )
        print_ledger(self._console, replace(worker, stages=(before, *worker.stages), total_seconds=total))
        names = ", ".join(model.name for model in state.models)
        self._console.print(f"serving [bold]{names}[/bold] at [bold]{self._url}/v1[/bold] (docs: {self._url}/docs)")
        if self._simulated:
            device = state.workers[0].device
            self._console.print(f"[bold red]ANSWERS ARE MADE UP[/bold red]: {device}, for tests of load and failures")


class Stack:
    """Gateway and node of one machine in one process."""

    def __init__(
        self, config: Config, files: list[ModelFiles], clock: SystemClock, log: logging.Logger, worker: Spawned
    ) -> None:
        self.config = placed(config, files)
        self._files = files
        self._clock = clock
        self._log = log
        self._metrics = Metrics()
        self._secret = resume_secret(config.gateway.resume_key)
        self._link, self._node_link = memory_pair()
        limits = dispatch_limits(config)
        self.fleet = Fleet("local", limits, config.gateway.silence_seconds, clock, self._metrics, self._on_state)
        self._agent = NodeAgent("local", self.config, clock, worker)
        self._listeners: list[Callable[[NodeState], None]] = []
        self._stopping = False

    def on_state(self, listener: Callable[[NodeState], None]) -> None:
        """Tell `listener` of every change of the node."""
        self._listeners.append(listener)

    def _on_state(self, state: NodeState) -> None:
        for listener in self._listeners:
            listener(state)

    async def requests(self) -> list[bytes]:
        """The requests in flight, for administrators."""
        return [requests_json(self.fleet, self._clock)]

    def app(self) -> Starlette:
        """The HTTP application, with every model's tokenizer and template."""
        models = zip(self.config.models, self._files, strict=True)
        frontends = {entry.name: load_frontend(one) for entry, one in models}
        return create_app(
            self.fleet, frontends, self.config.server, self._clock, self._metrics, self._log, self._secret
        )

    @asynccontextmanager
    async def running(self, failed: Callable[[ErrorInfo], None]) -> AsyncIterator[None]:
        """Dispatcher, node and worker run inside; `failed` is called should one of them end by itself."""

        def ended(task: asyncio.Task[Any]) -> None:
            if not task.cancelled() and not self._stopping:
                self._log.error("%s ended", task.get_name(), exc_info=task.exception())
                failed(unavailable(f"The {task.get_name()} ended.").info)

        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self.fleet.run(), name="dispatcher"),
            asyncio.create_task(self.fleet.serve_link("local", self._link, watched=False), name="link"),
            asyncio.create_task(self._agent.run(), name="node"),
            asyncio.create_task(self._agent.serve_link(self._node_link, watched=False), name="node's link"),
        ]
        for task in tasks:
            task.add_done_callback(ended)
        await asyncio.sleep(0)  # the worker gets its configuration while the caller goes on
        try:
            yield
        finally:
            self._stopping = True
            await self._agent.stop(WORKER_STOP_SECONDS)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def listen(config: Config) -> socket.socket:
    """The listening socket. Raises `InferenceError` when the address cannot be had."""
    host, port = config.server.host, config.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise invalid(f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port") from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * UNREAD_SECONDS)
    return listening


async def serve(config: Config, console: Console, worker: Spawned) -> None:
    """Serve until a signal ends it. Raises `InferenceError` when it cannot start, or cannot go on.

    `worker` was spawned ahead, and has been importing its libraries since.
    """
    clock = SystemClock()
    started = process_start(clock, os.getpid())
    log = set_up_logs(config.log.level, config.log.json, sys.stderr)
    files = fetch_served(config)
    with listen(config) as sock:
        stack = Stack(config, files, clock, log, worker)
        url = f"http://{config.server.host}:{sock.getsockname()[1]}"
        stack.on_state(Announcer(console, clock, started, url, config.node.simulated))
        server = GatewayServer(stack.app, stack.fleet, config.server.drain_seconds)
        stack.on_state(server.watch)
        async with stack.running(server.fail), admin_server(stack.fleet, config.admin, clock, stack.requests):
            await server.run(sock)
