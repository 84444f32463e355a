"""`istack serve` in its own process, as end-to-end tests hold it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Final

import httpx

START_SECONDS = 120
STORY: Final[dict[str, Any]] = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Write a long story about a fisherman and the sea."}],
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True},
}
"""A request for as many tokens as it asks."""


class Server:
    """A running `istack serve`."""

    def __init__(self, *arguments: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        command = [sys.executable, "-m", "inference_stack.cli.main", "serve", *arguments, "--port", str(self.port)]
        self.process = subprocess.Popen(command, env=environment)
        self.http = httpx.Client(base_url=self.url, timeout=120)

    def wait_ready(self) -> Server:
        """Block until the server can serve."""
        for _ in range(START_SECONDS * 10):
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with status {self.process.returncode}")
            try:
                if self.http.get("/ready").status_code == 200:
                    return self
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.1)
        raise TimeoutError("the server did not become ready")

    def worker_pid(self) -> int:
        """The pid of the only worker."""
        (worker,) = self.http.get("/health").json()["workers"]
        return int(worker["pid"])

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.partition("{")[0].partition(" ")[0] == name)

    def kill_worker(self, number: int = signal.SIGKILL) -> int:
        """Send the worker a signal; its pid."""
        pid = self.worker_pid()
        os.kill(pid, number)
        return pid

    def stop(self) -> int:
        """Ask the server to end; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        self.http.close()
        return self.process.wait(60)
