"""Pairs of linked ends, in memory and over gRPC."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from inference_stack.wire.grpc.dial import dial
from inference_stack.wire.grpc.server import LinkServer
from inference_stack.wire.memory import memory_pair

Pair = tuple[Any, Any]
"""The gateway's end and the node's."""


async def grpc_pair(stack: AsyncExitStack, **options: Any) -> Pair:
    """Linked ends over loopback. `options` are for both."""
    accepted: asyncio.Queue[Any] = asyncio.Queue()
    over = asyncio.Event()

    async def on_link(link: Any, peer: str) -> None:
        accepted.put_nowait(link)
        await over.wait()

    server = LinkServer("127.0.0.1:0", None, on_link, **options)
    await server.start()
    stack.push_async_callback(server.stop)
    stack.callback(over.set)
    gateway = await dial(f"127.0.0.1:{server.port}", **options)
    stack.push_async_callback(gateway.close)
    return gateway, await accepted.get()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture(params=["memory", "grpc"])
async def pair(request: pytest.FixtureRequest, stack: AsyncExitStack) -> Pair:
    return memory_pair() if request.param == "memory" else await grpc_pair(stack)


@pytest.fixture
def connect(stack: AsyncExitStack) -> Callable[..., Awaitable[Pair]]:
    """Makes more pairs over gRPC."""

    async def more(**options: Any) -> Pair:
        return await grpc_pair(stack, **options)

    return more
