"""One end of a gRPC link: a `Link` whose messages go through queues to the tasks that read and write its streams.

Whatever ends one of those tasks ends the link, with the reason for the log. Which end it is, and what is sent, is known in `ends`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

import grpc
import grpc.aio

from inference_stack.core.seams import LinkClosed
from inference_stack.wire.codec import ProtocolError
from inference_stack.wire.grpc.ends import End
from inference_stack.wire.grpc.queues import BACKLOG_BYTES, Inbox, Outbox, Overflow

FLUSH_SECONDS: Final = 0.5
"""How long `close` waits for what has been sent to leave, and then for the other side to notice."""
ENDED: Final = "the link was closed"
LEFT: Final = "the other side closed it"

log = logging.getLogger(__name__)


class GrpcLink:
    """A `Link` over gRPC streams; `dial` and `LinkServer` make them. `peer`: a certificate's name, or an address."""

    def __init__(self, end: End, peer: str, version: int, backlog: int = BACKLOG_BYTES) -> None:
        self.peer = peer
        self.version = version
        """The wire version that both sides speak."""
        self.reason: str | None = None
        """Why the link has ended."""
        self._end = end
        self._inbox = Inbox()
        self._outbox = Outbox(end.encode, backlog)
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()
        self._closing = False
        self._closes = asyncio.Lock()

    async def send(self, message: Any) -> None:
        """Deliver in order. Does not wait: a side that does not read is cut off when too much waits. Raises `LinkClosed`."""
        if self.reason is not None or self._closing:
            raise LinkClosed(self.reason or ENDED)
        try:
            self._outbox.put(message)
        except Overflow as error:
            self.finish(str(error))
            raise LinkClosed(str(error)) from error

    async def receive(self) -> Any:
        """The next message. Raises `LinkClosed`. May be cancelled without loss."""
        if self._closing:
            raise LinkClosed(ENDED)
        return await self._inbox.get()

    async def close(self) -> None:
        """Both ends see `LinkClosed` from now on, the other one after what was sent before. Idempotent."""
        self._closing = True
        async with self._closes:
            if self.reason is None and await self._within(self._outbox.flushed()):
                await self._within(self._hang_up())
            self.finish(ENDED)
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _within(self, part: Coroutine[Any, Any, None]) -> bool:
        """Whether this was done in time, and the link still lasts."""
        task = asyncio.create_task(self._guard(part, ended=False))
        await asyncio.wait([task, *self._tasks], timeout=FLUSH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        done = task.done()
        task.cancel()
        return done and self.reason is None

    async def _hang_up(self) -> None:
        """Tell the other side, once all is sent. The end of a node's call tells it by itself."""

    async def over(self) -> None:
        """Return when the link has ended."""
        await self._over.wait()

    def write_to(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Send messages over this stream."""
        self.run(self._outbox.run(write))

    def read_from(self, read: Callable[[], Awaitable[Any]], decode: Callable[[bytes], Sequence[Any]]) -> None:
        """Receive messages from this stream, until it ends."""
        self.run(self._read(read, decode))

    def run(self, part: Coroutine[Any, Any, None]) -> None:
        """Work on the link as long as it lasts; it ends with any of its parts."""
        if self.reason is not None:
            part.close()
            return
        task = asyncio.create_task(self._guard(part))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: part.close())  # it may have been cancelled before it began

    def finish(self, reason: str) -> None:
        """The link has ended. Idempotent."""
        if self.reason is not None:
            return
        self.reason = reason
        level = logging.DEBUG if reason in (ENDED, LEFT) else logging.WARNING
        log.log(level, "The link with %s ended: %s.", self.peer, reason)
        self._inbox.close(reason)
        self._over.set()
        for task in self._tasks:
            task.cancel()

    async def _guard(self, part: Coroutine[Any, Any, None], ended: bool = True) -> None:
        try:
            await part
            if ended:
                self.finish(LEFT)
        except grpc.aio.AioRpcError as error:
            self.finish(error.details() or error.code().name)
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            self.finish(f"the connection is gone ({type(error).__name__})")
        except ProtocolError as error:
            self.finish(f"what came makes no sense: {error}")
        except Exception as error:
            log.exception("The link with %s failed at this end.", self.peer)
            self.finish(f"this end failed: {error}")

    async def _read(self, read: Callable[[], Awaitable[Any]], decode: Callable[[bytes], Sequence[Any]]) -> None:
        while True:
            await self._inbox.room()
            data = await read()
            if data is grpc.aio.EOF:
                return
            for message in decode(data):
                self._inbox.put(message)
