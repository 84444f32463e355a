"""One worker process as its node holds it: spawn, talk, kill."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys

from inference_stack.wire.channel import StreamLink


class WorkerProcess:
    """A child process and the link to it over an inherited socket pair: no port, no path, nobody else can connect."""

    def __init__(self, child: subprocess.Popen[bytes], link: StreamLink) -> None:
        self._child = child
        self.link = link

    @classmethod
    async def spawn(cls) -> WorkerProcess:
        """Start a worker. It says `Hello` first."""
        ours, theirs = socket.socketpair()
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-m", "inference_stack.engine.worker", "--fd", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
            )
        return cls(child, await StreamLink.over(ours))

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
