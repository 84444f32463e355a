"""A server's processes: start and stop them, weigh them, see whether they rest, and stop the clock of those that do not.

Linux: memory is the proportional set size, so that pages shared by several processes count once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

START_S = 600.0
REST_S = 2.0
RESTLESS = 0.02
"""Share of one core above which an idle server is stopped while others are measured."""

DROPPED = ("OMP_", "ISTACK_", "KMP_", "MKL_", "TORCH")


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without settings that would change how a server runs, and what the server needs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
    return {**kept, **extra}


class Process:
    """A command with everything it started. It runs in a session of its own; its output goes to `log`."""

    def __init__(self, command: Sequence[str], extra: Mapping[str, str], log: Path, piped: bool = False) -> None:
        """`piped`: its standard input and output are ours to talk to; otherwise its input stays open and silent."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, self.command, self.extra = log, list(command), dict(extra)
        self.frozen = self.restless = False
        with log.open("wb") as sink:
            self.began = time.monotonic()
            self.child = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if piped else sink,
                stderr=sink,
                env=environment(extra),
                start_new_session=True,
            )

    @contextmanager
    def or_stop(self) -> Iterator[None]:
        """End the process if the block fails, in whatever way."""
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def wait(self, ready: Callable[[], bool]) -> float:
        """Seconds from the start until `ready`. Raises `RuntimeError` with the end of the log if that never comes."""
        while time.monotonic() - self.began < START_S:
            if ready():
                return time.monotonic() - self.began
            if self.child.poll() is not None:
                raise RuntimeError(f"ended with status {self.child.returncode}: {self.last_words()}")
            time.sleep(0.02)
        raise RuntimeError(f"not ready after {START_S:.0f} s: {self.last_words()}")

    def last_words(self) -> str:
        """The end of the log."""
        return self.log.read_text(errors="replace")[-1500:].strip()

    def pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """Standard input and output of a piped child."""
        if self.child.stdin is None or self.child.stdout is None:
            raise ValueError("this process is not piped")
        return self.child.stdin, self.child.stdout

    def tree(self) -> list[psutil.Process]:
        """The process and all its descendants that still run."""
        try:
            root = psutil.Process(self.child.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def memory_mb(self) -> dict[str, float]:
        """Proportional set size now, and the sum of the largest resident sizes so far, in MB (10⁶ bytes)."""
        pss = peak = 0
        for process in self.tree():
            try:
                pss += process.memory_full_info().pss
                peak += _peak_rss(process.pid)
            except (psutil.NoSuchProcess, FileNotFoundError):
                continue
        return {"pss_mb": pss / 1e6, "peak_rss_mb": peak / 1e6}

    def cpu_s(self) -> float:
        """Processor seconds used by the processes that run now."""
        total = 0.0
        for process in self.tree():
            try:
                times = process.cpu_times()
                total += times.user + times.system
            except psutil.NoSuchProcess:
                continue
        return total

    def rest(self) -> float:
        """The share of one core that it uses while nobody asks anything; from then on `pause` knows what to do."""
        before = self.cpu_s()
        time.sleep(REST_S)
        share = max(0.0, self.cpu_s() - before) / REST_S
        self.restless = share > RESTLESS
        return share

    def pause(self) -> None:
        """Stop its clock if it does not rest by itself."""
        if self.restless and not self.frozen:
            self._signal(signal.SIGSTOP)
            self.frozen = True

    def resume(self) -> None:
        """Let it run again."""
        if self.frozen:
            self._signal(signal.SIGCONT)
            self.frozen = False
            time.sleep(0.5)

    def stop(self) -> None:
        """End it and all that it started."""
        self.resume()
        tree = self.tree()
        self._signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(tree, timeout=20)
        for process in alive:
            process.kill()
        self.child.wait(20)
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        for process in self.tree():
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue


def _peak_rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
