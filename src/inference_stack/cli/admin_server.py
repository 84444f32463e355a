"""The administrators' API beside a gateway, on a port of its own.

Knows sockets; what is served is `gateway.admin`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import uvicorn

from inference_stack.config.tree import AdminConfig
from inference_stack.core.errors import invalid
from inference_stack.core.seams import Clock
from inference_stack.gateway.admin import Requests, admin_app, read_token
from inference_stack.gateway.audit import Audit
from inference_stack.gateway.fleet import Fleet
from inference_stack.wire.addresses import is_loopback


class _Quiet(uvicorn.Server):
    """uvicorn beside another server: signals are that one's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@contextlib.asynccontextmanager
async def admin_server(fleet: Fleet, config: AdminConfig, clock: Clock, requests: Requests) -> AsyncIterator[None]:
    """Serves the administrators' API inside, where the configuration has a port for it. Raises `InferenceError`."""
    if not config.port:
        yield
        return
    token = read_token(config.token) if config.token else b""
    if not token and not is_loopback(f"{config.host}:{config.port}"):
        problem = f"the administrators' API on {config.host} needs --admin-token"
        raise invalid(problem, param="admin.token", code="invalid_config")
    app = admin_app(fleet, token, Audit(config.audit, clock), requests)
    with _listen(config) as sock:
        settings = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", server_header=False)
        server = _Quiet(settings)
        task = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            yield
        finally:
            server.should_exit = True
            await task


def _listen(config: AdminConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        where = f"{config.host} port {config.port}"
        raise invalid(f"cannot listen on {where}: {error.strerror}; choose another with --admin-port") from error
