"""Whether a new completion is let in, and when a refused one should come back.

A bounded queue; Retry-After is the queue divided by how fast it has been draining lately. Knows time only as arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

MIN_RETRY: Final = 1.0
MAX_RETRY: Final = 60.0
HALF_LIFE: Final = 10.0
"""Seconds after which an old drain rate counts half."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Admitted, or refused with seconds after which to retry."""

    admitted: bool
    retry_after: float = 0.0


class DrainRate:
    """Completions finished per second: an exponentially weighted average that tolerates bursts and idleness."""

    def __init__(self) -> None:
        self._finished = 0.0
        self._seconds = 0.0
        self._last: float | None = None

    def finished(self, now: float, count: int = 1) -> None:
        """`count` completions ended at `now`. The first call starts the measurement."""
        self._advance(now)
        self._finished += count

    def per_second(self, now: float) -> float:
        """The rate at `now`; 0 while nothing is known."""
        self._advance(now)
        return self._finished / self._seconds if self._seconds > 0.0 else 0.0

    def _advance(self, now: float) -> None:
        if self._last is None:
            self._last = now
            return
        elapsed = max(0.0, now - self._last)
        keep = math.exp2(-elapsed / HALF_LIFE)
        self._finished *= keep
        self._seconds = self._seconds * keep + elapsed
        self._last = now


def retry_after(queued: int, rate: float) -> float:
    """Seconds until `queued` completions have drained at `rate` per second, within [1, 60]."""
    if rate <= 0.0:
        return MAX_RETRY if queued else MIN_RETRY
    return min(MAX_RETRY, max(MIN_RETRY, queued / rate))


def admit(outstanding: int, max_running: int, max_queue: int, rate: float, count: int = 1) -> Decision:
    """Let `count` more completions in beside `outstanding` ones, unless the queue would exceed `max_queue`."""
    if outstanding + count <= max_running + max_queue:
        return Decision(admitted=True)
    queued = max(0, outstanding - max_running)
    return Decision(admitted=False, retry_after=retry_after(queued, rate))
