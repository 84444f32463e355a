"""The HTTP server around the gateway's application: listens at once, drains on the first signal, ends on the second."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from inference_stack.cli.tuning import tune_interpreter
from inference_stack.core.errors import ErrorInfo, InferenceError, unavailable
from inference_stack.core.fleet import NodeState
from inference_stack.gateway.fleet import Fleet

DRAIN_LOOK_SECONDS = 0.05
GOODBYE_SECONDS = 2
"""How long connections may take to close once every stream has ended: a client that does not read is not waited for."""


class GatewayServer:
    """Serves `build()`'s application until a signal, or until what is behind it has failed for good."""

    def __init__(self, build: Callable[[], Starlette], fleet: Fleet, drain_seconds: float) -> None:
        self._build = build
        self._fleet = fleet
        self._drain_seconds = drain_seconds
        self._http: _Uvicorn | None = None
        self._failure: ErrorInfo | None = None

    async def run(self, sock: socket.socket) -> None:
        """Serve on a listening socket. Raises `InferenceError` when it ended because of a failure."""
        app = self._build()
        settings = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=GOODBYE_SECONDS,
        )
        loop = asyncio.get_running_loop()
        draining: list[asyncio.Task[None]] = []

        def begin_drain() -> None:
            app.state.gateway.begin_drain()
            draining.append(loop.create_task(self._drain()))

        tune_interpreter()
        self._http = _Uvicorn(settings, lambda: loop.call_soon_threadsafe(begin_drain))
        self._http.should_exit = self._failure is not None
        await self._http.serve(sockets=[sock])
        for task in draining:
            task.cancel()
        await asyncio.gather(*draining, return_exceptions=True)
        if self._failure is not None:
            raise InferenceError(self._failure)

    def watch(self, state: NodeState) -> None:
        """A node that gave up is all there is: whoever supervises this process should know."""
        if state.error is not None:
            self.fail(state.error)

    def fail(self, error: ErrorInfo) -> None:
        """End every stream and the server because of `error`."""
        self._failure = error
        self._fleet.fail_remaining(error)
        if self._http is not None:
            self._http.should_exit = True

    async def _drain(self) -> None:
        """Let streams finish for as long as they may, end the rest with an error, then stop."""
        try:
            async with asyncio.timeout(self._drain_seconds):
                while not self._fleet.idle:
                    await asyncio.sleep(DRAIN_LOOK_SECONDS)
        except TimeoutError:
            self._fleet.fail_remaining(unavailable("The server is shutting down.").info)
        if self._http is not None:
            self._http.should_exit = True


class _Uvicorn(uvicorn.Server):
    """uvicorn that asks us what a signal means."""

    def __init__(self, config: uvicorn.Config, on_first_signal: Callable[[], object]) -> None:
        super().__init__(config)
        self._on_first_signal = on_first_signal
        self._asked = False

    def handle_exit(self, sig: int, frame: object) -> None:
        """A signal arrived."""
        if self._asked:
            self.should_exit = self.force_exit = True
        else:
            self._asked = True
            self._on_first_signal()
