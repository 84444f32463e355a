"""An in-process `Link`: two ends over two queues, for a gateway and a node that share a process."""

from __future__ import annotations

import asyncio
from typing import Any

from inference_stack.core.seams import LinkClosed


class _Closed:
    """Marks the end of a queue."""


class MemoryLink:
    """One end of an in-memory link. Unbounded: its senders are bounded by admission."""

    def __init__(self, inbox: asyncio.Queue[Any], outbox: asyncio.Queue[Any]) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._closed = False

    async def send(self, message: Any) -> None:
        """Deliver in order. Raises `LinkClosed`."""
        if self._closed:
            raise LinkClosed
        self._outbox.put_nowait(message)

    async def receive(self) -> Any:
        """The next message. Raises `LinkClosed`."""
        if self._closed:
            raise LinkClosed
        message = await self._inbox.get()
        if isinstance(message, _Closed):
            self._closed = True
            raise LinkClosed
        return message

    async def close(self) -> None:
        """Both ends see `LinkClosed` from now on. Idempotent."""
        if not self._closed:
            self._closed = True
            self._outbox.put_nowait(_Closed())
            self._inbox.put_nowait(_Closed())


def memory_pair() -> tuple[MemoryLink, MemoryLink]:
    """The two ends of a new link."""
    there: asyncio.Queue[Any] = asyncio.Queue()
    back: asyncio.Queue[Any] = asyncio.Queue()
    return MemoryLink(back, there), MemoryLink(there, back)
