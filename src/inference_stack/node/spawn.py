"""Start a worker process with nothing but the standard library, so that it can be done before anything slow is imported."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spawned:
    """A worker that imports its libraries and waits for its configuration on the other end of `sock`."""

    child: subprocess.Popen[bytes]
    sock: socket.socket


def spawn(engine: str = "native") -> Spawned:
    """Start a worker on an inherited socket pair: no port, no path, nobody else can connect. It ends when `sock` closes.

    `engine`, native or simulated, tells it which libraries to import meanwhile.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        child = subprocess.Popen(
            [sys.executable, "-m", "inference_stack.engine.worker", "--fd", str(theirs.fileno()), "--engine", engine],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
        )
    return Spawned(child, ours)
