"""The socket that clients connect to."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import pytest

from inference_stack.cli import compose
from inference_stack.config.tree import Config

pytestmark = pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system cannot do that")


class Talker(asyncio.Protocol):
    """Writes more than any socket takes; `gone` is why its connection ended."""

    def __init__(self) -> None:
        self.gone: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(bytes(32 << 20))

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set_result(exc)


async def test_a_client_that_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "UNREAD_SECONDS", 1)
    config = Config()
    listening = compose.listen(replace(config, server=replace(config.server, port=0)))
    talker = Talker()
    server = await asyncio.get_running_loop().create_server(lambda: talker, sock=listening)
    with socket.create_connection(listening.getsockname()):
        reason = await asyncio.wait_for(talker.gone, 30)
    assert isinstance(reason, TimeoutError)
    server.close()
