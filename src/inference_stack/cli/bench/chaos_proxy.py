"""A TCP proxy that misbehaves on demand: it cuts, swallows one direction or both, delays and throttles.

    gateway ──▶ Wire (a port of its own) ──up──▶ node          every gateway–node pair has its own wire
            ◀────────────────────────────down──

Runs in a thread with its own event loop, so that a busy client does not slow links down. Knows bytes, not what they mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

READ_BYTES = 1 << 16
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, for 0 seconds: closing sends RST."""


@dataclass(slots=True)
class Way:
    """One direction. Bytes are held while it is not open; `delay` in seconds per read, `rate` in bytes per second (0: no limit)."""

    open: asyncio.Event = field(default_factory=asyncio.Event)
    delay: float = 0.0
    rate: float = 0.0

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward until either side ends. What was read before a hold is held too, as packets on their way are."""
        while data := await reader.read(READ_BYTES):
            await self.open.wait()
            if self.delay:
                await asyncio.sleep(self.delay)
            writer.write(data)
            await writer.drain()
            if self.rate:
                await asyncio.sleep(len(data) / self.rate)


class Wire:
    """One link's proxy. Its methods may be called from any thread, and act a moment later."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target: int) -> None:
        self.port = 0
        self._loop = loop
        self._target = target
        self._up, self._down = Way(), Way()
        self._writers: set[asyncio.StreamWriter] = set()

    async def listen(self) -> None:
        """Take connections from now on."""
        self._up.open.set()
        self._down.open.set()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Reset every connection. New ones work at once."""
        self._soon(self._reset)

    def hold(self, up: bool, down: bool) -> None:
        """Swallow what the gateway says (`up`), what the node says (`down`), or both."""

        def act() -> None:
            for way, held in ((self._up, up), (self._down, down)):
                (way.open.clear if held else way.open.set)()

        self._soon(act)

    def slow(self, delay: float, rate: float) -> None:
        """Both directions wait `delay` seconds before each piece and let `rate` bytes a second through."""

        def act() -> None:
            for way in (self._up, self._down):
                way.delay, way.rate = delay, rate

        self._soon(act)

    def mend(self) -> None:
        """All is well again."""
        self.hold(up=False, down=False)
        self.slow(0.0, 0.0)

    def _soon(self, act: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(act)

    def _reset(self) -> None:
        for writer in self._writers:
            _abort(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        beyond: asyncio.StreamWriter | None = None
        try:
            far, beyond = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(beyond)
            ways = [self._up.pump(reader, beyond), self._down.pump(far, writer)]
            tasks = [asyncio.ensure_future(way) for way in ways]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        except OSError:
            pass  # the node is not there: its gateway sees a connection that ends, as it would without us
        finally:
            for one in (writer, beyond):
                if one is not None:
                    self._writers.discard(one)
                    _abort(one)


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close at once, so that the other side sees a reset."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


async def _end_others() -> None:
    """Cancel what still runs in this loop."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Proxy:
    """All wires, in a thread; a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(_end_others())
        self._loop.close()

    def wire(self, target: int) -> Wire:
        """A new way to the port `target` of this machine."""

        async def make() -> Wire:
            wire = Wire(self._loop, target)
            await wire.listen()
            return wire

        made: Future[Wire] = asyncio.run_coroutine_threadsafe(make(), self._loop)
        return made.result(10)
