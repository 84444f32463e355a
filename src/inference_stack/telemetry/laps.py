"""Where the time of a repeated piece of work goes: laps between named points, summed over repetitions.

Knows names and a clock; what the names mean is the caller's business.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Protocol

from inference_stack.core.seams import Clock


class Laps(Protocol):
    """Told where the work has got to."""

    def start(self) -> None:
        """What went before belongs to nothing."""
        ...

    def lap(self, name: str) -> None:
        """The time since the last call belongs to `name`."""
        ...


class NoLaps:
    """Nobody is measuring."""

    __slots__ = ()

    def start(self) -> None:
        """Nothing."""

    def lap(self, name: str) -> None:
        """Nothing."""


class LapTimes:
    """Sums seconds by name."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = clock.now()
        self.seconds: dict[str, float] = defaultdict(float)

    def start(self) -> None:
        """What went before belongs to nothing."""
        self._last = self._clock.now()

    def lap(self, name: str) -> None:
        """The time since the last call belongs to `name`."""
        now = self._clock.now()
        self.seconds[name] += now - self._last
        self._last = now
