"""The account of a start: stages in seconds, bytes by use, what was derived. It becomes a `Ledger`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from inference_stack.core.seams import Clock
from inference_stack.core.stats import Ledger


def process_start(clock: Clock, pid: int) -> float:
    """When a process of this machine began, on the monotonic clock: interpreter start-up belongs to the ledger too.

    Now, where the kernel does not tell.
    """
    try:
        with open(f"/proc/{pid}/stat") as stat:
            ticks = int(stat.read().rpartition(")")[2].split()[19])
    except OSError:
        return clock.now()
    return ticks / os.sysconf("SC_CLK_TCK")


class Account:
    """A ledger in the making. Stages are timed one after the other, from `started` (seconds on `clock`) on."""

    def __init__(self, clock: Clock, started: float) -> None:
        self._clock = clock
        self._started = started
        self._stages: list[tuple[str, float]] = []
        self.memory: list[tuple[str, int]] = []
        self.derived: dict[str, str] = {}

    def began(self, name: str) -> None:
        """Everything since `started` was stage `name`."""
        self._stages.append((name, self._clock.now() - self._started))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        began = self._clock.now()
        yield
        self._stages.append((name, self._clock.now() - began))

    def close(self) -> Ledger:
        """The finished ledger."""
        return Ledger(
            stages=tuple(self._stages),
            total_seconds=self._clock.now() - self._started,
            memory=tuple(self.memory),
            derived=self.derived,
        )
