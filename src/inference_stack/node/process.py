"""One worker process as its node holds it: talk, end."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from inference_stack.node.spawn import Spawned, spawn
from inference_stack.wire.channel import StreamLink


class WorkerProcess:
    """A worker and the link to it."""

    def __init__(self, child: subprocess.Popen[bytes], link: StreamLink) -> None:
        self._child = child
        self._reaper = ThreadPoolExecutor(1, "reaper")  # its own: a busy shared pool must not delay a death
        self._reaped: asyncio.Future[int] | None = None
        self.link = link

    @classmethod
    async def start(
        cls, spawned: Spawned | None = None, engine: str = "native", cores: Sequence[int] = ()
    ) -> WorkerProcess:
        """A worker, which says `Hello` first: the one that was `spawned` already, or a new one with this `engine` on `cores`."""
        spawned = spawned or spawn(engine, cores)
        return cls(spawned.child, await StreamLink.over(spawned.sock))

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._child.pid

    async def end(self, patience: float) -> int:
        """Reap it, killing it after `patience` seconds, however stuck it is; its exit status (negative: the signal).

        May be called again, by others, and with less patience.
        """
        if patience <= 0:
            self._child.kill()
        if self._reaped is None:
            self._reaped = asyncio.get_running_loop().run_in_executor(self._reaper, self._reap, patience)
        status = await asyncio.shield(self._reaped)
        self._reaper.shutdown(wait=False)
        await self.link.close()
        return status

    def _reap(self, patience: float) -> int:
        try:
            return self._child.wait(patience or None)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()
