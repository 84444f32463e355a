"""One worker process as its node holds it: talk, end."""

from __future__ import annotations

import asyncio
import subprocess

from inference_stack.node.spawn import Spawned, spawn
from inference_stack.wire.channel import StreamLink


class WorkerProcess:
    """A worker and the link to it."""

    def __init__(self, child: subprocess.Popen[bytes], link: StreamLink) -> None:
        self._child = child
        self.link = link

    @classmethod
    async def start(cls, spawned: Spawned | None = None) -> WorkerProcess:
        """A worker, which says `Hello` first: the one that was `spawned` already, or a new one."""
        spawned = spawned or spawn()
        return cls(spawned.child, await StreamLink.over(spawned.sock))

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._child.pid

    async def end(self, patience: float) -> int:
        """Reap it, killing it after `patience` seconds, however stuck it is; its exit status (negative: the signal)."""
        try:
            status = await asyncio.to_thread(self._child.wait, patience)
        except subprocess.TimeoutExpired:
            self._child.kill()
            status = await asyncio.to_thread(self._child.wait)
        await self.link.close()
        return status
