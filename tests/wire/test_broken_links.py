"""Links over a connection that is cut or falls silent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from inference_stack.core.seams import LinkClosed
from inference_stack.core.step import TokenDelta
from inference_stack.wire.grpc.dial import dial
from inference_stack.wire.grpc.server import LinkServer
from inference_stack.wire.messages import Beat, StepReport

BEAT = Beat(number=1, heard=0)


class Proxy:
    """Carries connections to a port; can hold everything back, or cut them all."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    def hold(self) -> None:
        self._flowing.clear()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def stop(self) -> None:
        self.cut()
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, back]
        self._tasks += [asyncio.create_task(self._carry(reader, back)), asyncio.create_task(self._carry(there, writer))]

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._flowing.wait()
                target.write(data)
                await target.drain()
            target.close()
        except ConnectionError:
            return


Bridge = tuple[Any, Any, Proxy]


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    """The gateway's end, the node's, and what is between them."""
    accepted: asyncio.Queue[Any] = asyncio.Queue()
    over = asyncio.Event()

    async def on_link(link: Any, peer: str) -> None:
        accepted.put_nowait(link)
        await over.wait()

    async with AsyncExitStack() as stack:
        server = LinkServer("127.0.0.1:0", None, on_link)
        await server.start()
        stack.push_async_callback(server.stop)
        stack.callback(over.set)
        proxy = Proxy(server.port)
        port = await proxy.start()
        stack.push_async_callback(proxy.stop)
        gateway = await dial(f"127.0.0.1:{port}")
        stack.push_async_callback(gateway.close)
        yield gateway, await accepted.get(), proxy


async def test_both_ends_see_a_cut(bridge: Bridge) -> None:
    gateway, node, proxy = bridge
    await gateway.send(BEAT)
    assert await node.receive() == BEAT
    proxy.cut()
    for end in (gateway, node):
        with pytest.raises(LinkClosed):
            await end.receive()
        with pytest.raises(LinkClosed):
            await end.send(BEAT)


async def test_a_silent_link_can_be_closed(bridge: Bridge) -> None:
    gateway, node, proxy = bridge
    proxy.hold()
    report = StepReport(deltas=tuple(TokenDelta(str(n), 0, tuple(range(1000))) for n in range(100)))
    for _ in range(20):
        await gateway.send(BEAT)
        await node.send(report)
        await asyncio.sleep(0)
    await asyncio.gather(gateway.close(), node.close())
    for end in (gateway, node):
        with pytest.raises(LinkClosed):
            await end.receive()


async def test_what_never_answers_is_given_up() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(LinkClosed, match="did not answer within"):
        await dial(f"127.0.0.1:{port}", timeout=0.2)
    server.close()


async def test_nobody_there_is_told_with_the_reason() -> None:
    probe = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = probe.sockets[0].getsockname()[1]
    probe.close()
    await probe.wait_closed()
    with pytest.raises(LinkClosed, match="cannot be reached"):
        await dial(f"127.0.0.1:{port}")


async def test_something_else_is_no_node() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(LinkClosed):
        await dial(f"127.0.0.1:{port}", timeout=2)
    server.close()
