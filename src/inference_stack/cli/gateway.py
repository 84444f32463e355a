"""`istack gateway`: the HTTP side alone. Finds nodes, keeps a link to each, and may run as several processes on one port.

istack gateway ─┬─ process: uvicorn ─ app ─ Fleet ═╗═ gRPC ═ node
                └─ process: uvicorn ─ app ─ Fleet ═╝═ gRPC ═ node …
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop
from rich.console import Console
from starlette.applications import Starlette

from inference_stack.artifacts.files import ModelFiles
from inference_stack.artifacts.vocabulary import vocabulary_digest
from inference_stack.cli.admin_server import admin_server
from inference_stack.cli.compose import dispatch_limits, listen
from inference_stack.cli.external import Externals
from inference_stack.cli.http import GatewayServer
from inference_stack.cli.models import fetch_served, placed
from inference_stack.cli.processes import Children
from inference_stack.cli.siblings import Siblings
from inference_stack.cluster.discovery import Discovery, sources
from inference_stack.config.tree import Config, TlsConfig
from inference_stack.core.errors import invalid, unavailable
from inference_stack.core.fleet import NodeState
from inference_stack.core.seams import Link, SystemClock
from inference_stack.frontend.load import load_frontend
from inference_stack.gateway.admin import requests_json
from inference_stack.gateway.app import create_app
from inference_stack.gateway.connect import Connector
from inference_stack.gateway.external import is_external
from inference_stack.gateway.fleet import Fleet
from inference_stack.gateway.resume import resume_secret
from inference_stack.telemetry.logs import set_up_logs
from inference_stack.telemetry.merge import merged
from inference_stack.telemetry.metrics import Metrics
from inference_stack.wire.grpc.dial import dial
from inference_stack.wire.grpc.tls import Tls
from inference_stack.wire.messages import FromNode, ToNode

FIRST_MODEL_SECONDS = 3.0


def tls_of(config: TlsConfig) -> Tls:
    """The configuration's certificates, as the wire takes them."""
    return Tls(ca=config.ca, cert=config.cert, key=config.key, insecure=config.insecure)


def own_vocabularies(config: Config, files: list[ModelFiles]) -> dict[str, str]:
    """The digests of the words by which this gateway's models are called and spelt."""
    return {entry.name: vocabulary_digest(one) for entry, one in zip(config.models, files, strict=True)}


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is, and the folder where they meet; None for one alone."""

    number: int = 0
    count: int = 1
    folder: Path | None = None


class GatewayProcess:
    """One process of a gateway."""

    def __init__(
        self, config: Config, files: list[ModelFiles], secret: bytes, name: str, console: Console, place: Place
    ) -> None:
        self._config = placed(config, files)
        self._secret = secret
        self._place = place
        self._files = files
        self._console = console
        self._clock = SystemClock()
        self._log = set_up_logs(config.log.level, config.log.json, sys.stderr)
        self._metrics = Metrics()
        self._told = asyncio.Event()
        limits = dispatch_limits(config)
        silence, vocabularies = config.gateway.silence_seconds, own_vocabularies(self._config, files)
        self._fleet = Fleet(name, limits, silence, self._clock, self._metrics, self._on_state, vocabularies)
        self._tls = tls_of(config.tls)
        self._external = Externals(self._config, files)
        answers = {"metrics": self._metrics.render, "requests": lambda: requests_json(self._fleet, self._clock)}
        self._siblings = Siblings(place.folder, place.number, place.count, answers) if place.folder else None

    async def run(self, sock: socket.socket) -> None:
        """Serve until a signal ends it. Raises `InferenceError` when it cannot."""
        config, clock = self._config, self._clock
        connector = Connector(self._fleet, self._dial, clock)
        discovery = Discovery(sources(config.gateway.nodes), config.gateway.refresh_seconds, clock, connector.nodes)
        server = GatewayServer(self._app, self._fleet, config.server.drain_seconds)
        tasks = self._vital(server, dispatcher=self._fleet.run(), discovery=discovery.run())
        try:
            async with AsyncExitStack() as beside:
                if self._siblings is not None:
                    await beside.enter_async_context(self._siblings.listening())
                if self._place.number == 0:
                    await beside.enter_async_context(admin_server(self._fleet, config.admin, clock, self._requests))
                await self._first_model()
                await server.run(sock)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await connector.close()

    async def _first_model(self) -> None:
        """Wait a moment for the first node, so that a process which starts beside others that serve refuses nobody. Connections
        queue meanwhile; where no node comes, they are accepted and told so."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_MODEL_SECONDS):
                await self._told.wait()

    def _vital(self, server: GatewayServer, **parts: Coroutine[Any, Any, None]) -> list[asyncio.Task[None]]:
        """Tasks without which the process is of no use: it ends with the first that does."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                self._log.error("the %s ended", task.get_name(), exc_info=task.exception())
                server.fail(unavailable(f"The {task.get_name()} ended.").info)

        tasks = [asyncio.create_task(part, name=name) for name, part in parts.items()]
        for task in tasks:
            task.add_done_callback(ended)
        return tasks

    def _app(self) -> Starlette:
        models = zip(self._config.models, self._files, strict=True)
        frontends = {entry.name: load_frontend(one) for entry, one in models}
        app = create_app(
            self._fleet, frontends, self._config.server, self._clock, self._metrics, self._log, self._secret
        )
        if self._siblings is not None:
            app.state.gateway.scrape = self._scrape
        return app

    async def _scrape(self) -> bytes:
        """The metrics of all processes."""
        return self._metrics.render() if self._siblings is None else merged(await self._siblings.ask_all("metrics"))

    async def _requests(self) -> list[bytes]:
        """The requests in flight of all processes, each a JSON list."""
        if self._siblings is None:
            return [requests_json(self._fleet, self._clock)]
        return list((await self._siblings.ask_all("requests")).values())

    async def _dial(self, address: str) -> Link[ToNode, FromNode]:
        if is_external(address):
            return await self._external.dial(address, self._clock)
        return await dial(address, self._tls)

    def _on_state(self, state: NodeState) -> None:
        if state.ready and not self._told.is_set():
            self._told.set()
            names = ", ".join(sorted(info.name for info in state.models))
            self._console.print(f"gateway is ready: [bold]{names}[/bold] on {state.node}")


def serve_gateway(config: Config) -> None:
    """Serve until interrupted. Raises `InferenceError` when it cannot."""
    if not config.models:
        raise invalid("no model is named; for example: istack gateway smollm2", param="models", code="invalid_config")
    if not sources(config.gateway.nodes):
        hint = "no nodes are named; for example: --gateway-nodes 127.0.0.1:7000"
        raise invalid(hint, param="gateway.nodes", code="invalid_config")
    console = Console(stderr=True)
    files = fetch_served(config)
    secret = resume_secret(config.gateway.resume_key)
    with listen(config) as sock:
        host, port = sock.getsockname()[:2]
        console.print(f"gateway listening on http://{host}:{port}/v1")
        if config.gateway.processes == 1:
            _run(config, files, secret, console, sock, Place())
            return
        with TemporaryDirectory(prefix="istack-") as folder:

            def work(number: int) -> None:
                _run(config, files, secret, console, sock, Place(number, config.gateway.processes, Path(folder)))

            Children(config.gateway.processes, work).run()


def _run(
    config: Config, files: list[ModelFiles], secret: bytes, console: Console, sock: socket.socket, place: Place
) -> None:
    name = f"{socket.gethostname()}-{os.getpid()}"
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(GatewayProcess(config, files, secret, name, console, place).run(sock))
