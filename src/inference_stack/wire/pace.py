"""When step reports are worth waiting for one another. Pure: time is passed in.

A message costs both ends about as much as several tokens do, and each of its tokens a write to a client. While few tokens cross
a link, they go at once; above a rate, those of a few milliseconds go together.
"""

from __future__ import annotations

import math
from typing import Final

BUSY_DELTAS: Final = 6000.0
"""Deltas per second from which on a link is busy: about half of what one gateway process can tell its clients."""
JOIN_SECONDS: Final = 0.005
"""How long the first of several reports waits, at most."""
MEMORY_SECONDS: Final = 0.1
"""Over which the rate is averaged."""


class Pace:
    """The rate of deltas over one link, and what follows from it."""

    def __init__(self) -> None:
        self._deltas = 0.0
        self._at = -math.inf

    def sent(self, deltas: int, now: float) -> None:
        """A report with so many deltas leaves."""
        self._deltas = self._remembered(now) + deltas
        self._at = now

    def wait(self, now: float) -> float:
        """Seconds that the next report shall wait for others; 0 unless the link is busy."""
        busy = self._remembered(now) > BUSY_DELTAS * MEMORY_SECONDS
        return max(0.0, self._at + JOIN_SECONDS - now) if busy else 0.0

    def _remembered(self, now: float) -> float:
        return self._deltas * math.exp((self._at - now) / MEMORY_SECONDS) if self._deltas else 0.0
