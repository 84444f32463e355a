"""What waits to be sent is joined and bounded; what waits to be received stops the reading."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from inference_stack.core.seams import LinkClosed
from inference_stack.core.step import TokenDelta
from inference_stack.wire.codec import decode, encode
from inference_stack.wire.grpc.queues import INBOX_MESSAGES, Inbox, Outbox, Overflow
from inference_stack.wire.messages import Beat, StepReport

BEAT = Beat(number=1, heard=0)


class Stream:
    """Writes to a list; `open` lets writes end."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.open = asyncio.Event()
        self.open.set()

    async def write(self, data: bytes) -> None:
        self.written.append(decode(data))
        await self.open.wait()


def report(*tokens: int, requests: int = 1) -> StepReport:
    return StepReport(deltas=tuple(TokenDelta(str(n), 0, tokens) for n in range(requests)))


@asynccontextmanager
async def running(outbox: Outbox, stream: Stream) -> AsyncIterator[None]:
    task = asyncio.create_task(outbox.run(stream.write))
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_reports_of_an_idle_link_go_one_by_one() -> None:
    outbox, stream = Outbox(encode), Stream()
    async with running(outbox, stream):
        for token in range(5):
            outbox.put(report(token))
            await outbox.flushed()
    assert stream.written == [report(token) for token in range(5)]


async def test_reports_that_wait_for_a_write_are_joined() -> None:
    outbox, stream = Outbox(encode), Stream()
    stream.open.clear()
    async with running(outbox, stream):
        outbox.put(report(0))
        while not stream.written:
            await asyncio.sleep(0)
        for token in range(1, 5):
            outbox.put(report(token))
        stream.open.set()
        await outbox.flushed()
    assert stream.written == [report(0), report(1, 2, 3, 4)]


async def test_other_messages_keep_their_place_among_reports() -> None:
    outbox, stream = Outbox(encode), Stream()
    for message in (report(0), report(1), BEAT, report(2), report(3)):
        outbox.put(message)
    async with running(outbox, stream):
        await outbox.flushed()
    assert stream.written == [report(0, 1), BEAT, report(2, 3)]


async def test_what_nobody_reads_is_bounded() -> None:
    outbox = Outbox(encode, limit=10_000)
    with pytest.raises(Overflow):
        for _ in range(1_000):
            outbox.put(report(*range(100)))


async def test_one_message_may_be_larger_than_the_bound() -> None:
    outbox, stream = Outbox(encode, limit=100), Stream()
    outbox.put(report(*range(1_000)))
    async with running(outbox, stream):
        await outbox.flushed()
    assert stream.written == [report(*range(1_000))]


async def test_a_full_inbox_stops_reading_until_something_is_taken() -> None:
    inbox = Inbox()
    for _ in range(INBOX_MESSAGES):
        inbox.put(BEAT)
    room = asyncio.create_task(inbox.room())
    await asyncio.sleep(0)
    assert not room.done()
    await inbox.get()
    await room


async def test_a_closed_inbox_gives_what_it_has_and_then_the_reason() -> None:
    inbox = Inbox()
    inbox.put(BEAT)
    inbox.close("over")
    inbox.close("again")
    assert await inbox.get() == BEAT
    with pytest.raises(LinkClosed, match="over"):
        await inbox.get()
