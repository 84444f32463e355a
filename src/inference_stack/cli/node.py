"""`istack node`: this machine's workers alone, for gateways that dial in.

gateway ═╗
gateway ═╬═ gRPC ═ LinkServer ─ NodeAgent ─ worker processes        first signal: drain, then exit 0; second: at once
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from dataclasses import replace

from rich.console import Console

from inference_stack.artifacts.files import ModelFiles
from inference_stack.cli.ledger import print_ledger
from inference_stack.cli.models import fetch_served, placed
from inference_stack.cli.tuning import tune_interpreter
from inference_stack.config.tree import Config
from inference_stack.core.errors import InferenceError, unavailable
from inference_stack.core.fleet import NodeState
from inference_stack.core.seams import SystemClock
from inference_stack.node.agent import NodeAgent
from inference_stack.node.spawn import Spawned
from inference_stack.telemetry.logs import set_up_logs
from inference_stack.telemetry.startup import process_start
from inference_stack.wire.grpc.server import LinkServer
from inference_stack.wire.grpc.tls import Tls

WORKER_STOP_SECONDS = 2.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class NodeProcess:
    """A node from its configuration to its last signal. `worker` was spawned ahead."""

    def __init__(self, config: Config, files: list[ModelFiles], console: Console, worker: Spawned) -> None:
        self._config = placed(config, files)
        self._console = console
        self._clock = SystemClock()
        self._log = set_up_logs(config.log.level, config.log.json, sys.stderr)
        self._name = config.node.name or socket.gethostname()
        self._agent = NodeAgent(self._name, self._config, self._clock, worker, self._on_state)
        self._told = False
        self._failure: InferenceError | None = None
        self._leave, self._at_once = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Serve until a signal ends it. Raises `InferenceError` when it cannot listen, or every worker has failed for good."""
        settings, loop = self._config.tls, asyncio.get_running_loop()
        tls = Tls(ca=settings.ca, cert=settings.cert, key=settings.key, insecure=settings.insecure)
        server = LinkServer(self._config.node.listen, tls, self._agent.serve_link)
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        working = asyncio.create_task(self._agent.run(), name="node")
        working.add_done_callback(self._ended)
        try:
            await server.start()
            tune_interpreter()
            host = self._config.node.listen.rpartition(":")[0]
            print(f"node {self._name} listening on {host}:{server.port}", flush=True)
            await self._leave.wait()
            await self._drain()
        finally:
            working.remove_done_callback(self._ended)
            await self._agent.stop(0 if self._at_once.is_set() else WORKER_STOP_SECONDS)
            await server.stop()
            await asyncio.gather(working, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    async def _drain(self) -> None:
        """Let requests end, or move, unless there is no time or no point."""
        if self._failure is not None:
            self._at_once.set()
        draining = asyncio.create_task(self._agent.drain(self._config.node.node_drain_seconds))
        hurried = asyncio.create_task(self._at_once.wait())
        done, _ = await asyncio.wait((draining, hurried), return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, hurried):
            task.cancel()
        await asyncio.gather(draining, hurried, return_exceptions=True)
        if draining in done:
            draining.result()

    def _on_signal(self) -> None:
        if self._leave.is_set():
            self._at_once.set()
        else:
            self._log.info("draining: at most %g s", self._config.node.node_drain_seconds)
            self._leave.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The agent has ended by itself, which it never should."""
        self._log.error("the node ended", exc_info=None if task.cancelled() else task.exception())
        self._fail(unavailable("The node ended."))

    def _fail(self, error: InferenceError) -> None:
        self._failure = error
        self._leave.set()

    def _on_state(self, state: NodeState) -> None:
        if state.error is not None:
            self._fail(InferenceError(state.error))
        if state.ready and not self._told and all(worker.state != "starting" for worker in state.workers):
            self._told = True
            self._announce(state)

    def _announce(self, state: NodeState) -> None:
        """The ledger of every device, and what is served."""
        started = process_start(self._clock, os.getpid())
        for worker, ledger in zip(state.workers, state.ledgers, strict=False):
            before = ("node: python and set-up", process_start(self._clock, worker.pid) - started)
            total = self._clock.now() - started
            self._console.print(f"[bold]{worker.device}[/bold]")
            print_ledger(self._console, replace(ledger, stages=(before, *ledger.stages), total_seconds=total))
        for ledger in state.ledgers[len(state.workers) :]:
            print_ledger(self._console, ledger)
        names = ", ".join(f"{model.name} ({model.max_running} at once)" for model in state.models)
        self._console.print(f"node [bold]{self._name}[/bold] serves [bold]{names}[/bold]")
        if self._config.node.simulated:
            device = self._config.device_title
            self._console.print(f"[bold red]ANSWERS ARE MADE UP[/bold red]: {device}, for tests of load and failures")


async def serve(config: Config, console: Console, worker: Spawned) -> None:
    """Serve until a signal. `worker` has been importing its libraries since it was spawned. Raises `InferenceError`."""
    files = fetch_served(config)
    await NodeProcess(config, files, console, worker).run()
