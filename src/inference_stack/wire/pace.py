"""When step reports are worth waiting for one another. Pure: time is passed in.

A message costs both ends about as much as several tokens do, and each of its tokens a write to a client. While few tokens cross
a link, they go at once; the more there are, the longer they wait for one another, up to a few milliseconds.
"""

from __future__ import annotations

import math
from typing import Final

FULL_DELTAS: Final = 8000.0
"""Deltas per second at which reports wait longest: about what one gateway process can tell its clients."""
JOIN_SECONDS: Final = 0.005
"""How far apart messages are then, over a network."""
NEAR_JOIN_SECONDS: Final = 0.0015
"""The same inside a process, where only the writes to clients are saved."""
LEAST_SECONDS: Final = 0.0005
"""A shorter wait is none: timers are coarser."""
MEMORY_SECONDS: Final = 0.1
"""Over which the rate is averaged."""


class Pace:
    """The rate of deltas over one link, and what follows from it. `join`: seconds between messages of a link that is full."""

    def __init__(self, join: float = JOIN_SECONDS) -> None:
        self._join = join
        self._deltas = 0.0
        self._at = -math.inf

    def sent(self, deltas: int, now: float) -> None:
        """A report with so many deltas leaves."""
        self._deltas = self._remembered(now) + deltas
        self._at = now

    def wait(self, now: float) -> float:
        """Seconds that the next report shall wait for others."""
        apart = self._join * min(1.0, self._remembered(now) / (FULL_DELTAS * MEMORY_SECONDS))
        left = self._at + apart - now
        return left if left >= LEAST_SECONDS else 0.0

    def _remembered(self, now: float) -> float:
        return self._deltas * math.exp((self._at - now) / MEMORY_SECONDS) if self._deltas else 0.0
