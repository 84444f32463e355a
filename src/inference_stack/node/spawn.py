"""Start a worker process with nothing but the standard library, so that it can be done before anything slow is imported."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spawned:
    """A worker that imports its libraries and waits for its configuration on the other end of `sock`."""

    child: subprocess.Popen[bytes]
    sock: socket.socket


@contextmanager
def _confined(cores: Sequence[int]) -> Iterator[None]:
    """Children started inside are born on these cores: libraries size their thread pools by what they see when imported."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def spawn(engine: str = "native", cores: Sequence[int] = ()) -> Spawned:
    """Start a worker on an inherited socket pair: no port, no path, nobody else can connect. It ends when `sock` closes.

    `engine`, native or simulated, tells it which libraries to import meanwhile. It runs on these `cores` alone, if any are named.
    """
    ours, theirs = socket.socketpair()
    with theirs, _confined(cores):
        child = subprocess.Popen(
            [sys.executable, "-m", "inference_stack.engine.worker", "--fd", str(theirs.fileno()), "--engine", engine],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
        )
    return Spawned(child, ours)
