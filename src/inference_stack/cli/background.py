"""A server of our own in the background, for as long as a `with` block lasts."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from inference_stack.core.errors import ErrorInfo, InferenceError

_SET_DEATH_SIGNAL = 1
_STOP_SECONDS = 15.0


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent() -> None:
    """In the child: be told to stop when the parent ends, however it ends. Linux only; elsewhere the `with` block does it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)


def _failure(log: IO[bytes], status: int) -> InferenceError:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    reason = lines[-1].removeprefix("istack: ") if lines else f"exit status {status}"
    return InferenceError(ErrorInfo(message=f"the server did not start: {reason}", code="start_failed", status=500))


def _wait_ready(url: str, child: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    import httpx

    with httpx.Client(timeout=5.0, trust_env=False) as client:
        while (status := child.poll()) is None:
            try:
                if client.get(f"{url}/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
    raise _failure(log, status)


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


@contextmanager
def server(model: str, config: Path | None) -> Iterator[str]:
    """Serve `model` on a free port of this machine; yields the URL once it is ready. Raises `InferenceError` if it never is.

    The child has its own session, so that Ctrl-C in the terminal reaches only us.
    """
    port = free_port()
    command = [sys.executable, "-m", "inference_stack.cli.main", "serve", model]
    command += ["--host", "127.0.0.1", "--port", str(port)] + (["--config", str(config)] if config else [])
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            _wait_ready(url := f"http://127.0.0.1:{port}", child, log)
            yield url
        finally:
            _stop(child)
