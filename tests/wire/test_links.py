"""Links deliver in order and tell when the other end is gone."""

import asyncio
import socket
import threading

import pytest

from inference_stack.core.seams import LinkClosed
from inference_stack.wire.channel import Channel, StreamLink
from inference_stack.wire.codec import ProtocolError
from inference_stack.wire.memory import memory_pair
from inference_stack.wire.messages import Abort


def aborts(count: int) -> list[Abort]:
    return [Abort(request_ids=(str(number), "x" * 10_000)) for number in range(count)]


async def test_memory_links_deliver_in_order_and_close_both_ends() -> None:
    here, there = memory_pair()
    for message in aborts(3):
        await here.send(message)
    assert [await there.receive() for _ in range(3)] == aborts(3)
    await here.close()
    with pytest.raises(LinkClosed):
        await there.receive()
    with pytest.raises(LinkClosed):
        await there.send(aborts(1)[0])


async def test_a_blocking_channel_talks_to_an_asyncio_link() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    link = await StreamLink.over(ours)
    thread = threading.Thread(target=lambda: [channel.send(channel.receive()) for _ in range(50)])
    thread.start()
    for message in aborts(50):
        await link.send(message)
    assert [await link.receive() for _ in range(50)] == aborts(50)
    await asyncio.to_thread(thread.join)
    channel.close()
    with pytest.raises(LinkClosed):
        await link.receive()
    await link.close()


async def test_an_oversized_frame_is_refused() -> None:
    ours, theirs = socket.socketpair()
    link = await StreamLink.over(ours)
    theirs.sendall(b"\xff\xff\xff\xff")
    with pytest.raises(ProtocolError):
        await link.receive()
    theirs.close()
    await link.close()
