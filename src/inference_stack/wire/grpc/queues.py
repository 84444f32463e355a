"""A link's two queues: what waits to be sent, bounded in bytes, and what waits to be received, bounded in messages.

Sending never waits, so that one slow peer delays nobody else: what it does not read piles up to a limit, and then the link ends.
What waits is joined: reports into one, and so are requests, because a message costs as much as many of either.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from inference_stack.core.seams import LinkClosed
from inference_stack.wire.coalesce import coalesce
from inference_stack.wire.messages import Abort, Lost, StepReport, Submit

BACKLOG_BYTES: Final = 32 << 20
"""What may wait to be sent."""
JOINED_REPORT_BYTES: Final = 1 << 20
JOINED_SUBMIT_BYTES: Final = 32 << 10
"""What is joined to one message, at most. No request shall wait for the long prompt of another."""
SMALL_BYTES: Final = 256
NAME_BYTES: Final = 48
INBOX_MESSAGES: Final = 64
"""What may wait to be received; then reading pauses, and the other side's backlog grows."""


class Overflow(Exception):
    """The other side does not read."""


def _estimated(message: Any) -> int:
    """About how many bytes a message takes."""
    if isinstance(message, StepReport):
        return _report_bytes(message)
    if isinstance(message, Submit):
        known = (request.continuation for request in message.requests)
        return sum(SMALL_BYTES + 4 * (len(one.prompt) + len(one.emitted)) for one in known)
    return SMALL_BYTES + NAME_BYTES * len(message.request_ids) if isinstance(message, Abort | Lost) else SMALL_BYTES


def _report_bytes(report: StepReport) -> int:
    size = 64 + 256 * len(report.stats)
    for delta in report.deltas:
        size += 16 + 4 * len(delta.tokens)
        for entry in (*delta.logprobs, *(delta.prompt_logprobs or ())):
            size += 16 + 12 * len(entry.top)
    return size


class Outbox:
    """Messages on their way out. `encode` is called in the order of sending."""

    def __init__(self, encode: Callable[[Any], bytes], limit: int = BACKLOG_BYTES) -> None:
        self._encode = encode
        self._limit = limit
        self._queue: deque[tuple[Any, int]] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, message: Any) -> None:
        """Send this after everything before it. Raises `Overflow` when too much waits already."""
        if self._bytes > self._limit:
            raise Overflow(f"the other side does not read: {self._bytes >> 20} MiB wait to be sent")
        size = _estimated(message)
        self._queue.append((message, size))
        self._bytes += size
        self._idle.clear()
        self._wake.set()

    async def run(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Write messages, for ever."""
        while True:
            if not self._queue:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            await write(self._next())

    async def flushed(self) -> None:
        """Return when everything has been written."""
        await self._idle.wait()

    def _next(self) -> bytes:
        """The next message's bytes: with it go those right behind it that can be joined to it."""
        size, message = self._queue[0][1], self._pop()
        if isinstance(message, StepReport):
            return self._encode(coalesce([message, *self._more(StepReport, JOINED_REPORT_BYTES - size)]))
        if isinstance(message, Submit):
            submits = [message, *self._more(Submit, JOINED_SUBMIT_BYTES - size)]
            return self._encode(Submit(requests=tuple(request for one in submits for request in one.requests)))
        return self._encode(message)

    def _more(self, kind: type, room: int) -> Iterator[Any]:
        """Those next in line, while they are of this kind and there is room."""
        while self._queue and isinstance(self._queue[0][0], kind) and (room := room - self._queue[0][1]) >= 0:
            yield self._pop()

    def _pop(self) -> Any:
        item, size = self._queue.popleft()
        self._bytes -= size
        return item


class Inbox:
    """Messages that have come. Readers wait for `room` before they read; `put` itself never waits, so order is arrival's."""

    def __init__(self) -> None:
        self._queue: deque[Any] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._reason: str | None = None

    def put(self, message: Any) -> None:
        """Add what has come."""
        self._queue.append(message)
        self._news.set()
        if len(self._queue) >= INBOX_MESSAGES:
            self._room.clear()

    def close(self, reason: str) -> None:
        """Nothing more comes. Idempotent."""
        self._reason = self._reason or reason
        self._news.set()
        self._room.set()

    async def room(self) -> None:
        """Wait until there is room for more."""
        await self._room.wait()

    async def get(self) -> Any:
        """The next message. Raises `LinkClosed` after the last."""
        while not self._queue:
            if self._reason is not None:
                raise LinkClosed(self._reason)
            self._news.clear()
            await self._news.wait()
        message = self._queue.popleft()
        if len(self._queue) < INBOX_MESSAGES:
            self._room.set()
        return message
