"""Virtual time: actions in order of when they are due, first asked first done among equals. Nothing here takes real time.

Knows nothing of fleets. An action may ask for others, also for now.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from math import inf

Action = Callable[[], None]


class Timer:
    """An action that was asked for, and may be called off."""

    __slots__ = ("action",)

    def __init__(self, action: Action) -> None:
        self.action: Action | None = action

    def cancel(self) -> None:
        """It will not happen. Harmless afterwards."""
        self.action = None


class Loop:
    """The clock and what is due on it. Seconds from 0."""

    def __init__(self) -> None:
        self._now = 0.0
        self._due: list[tuple[float, int, Timer]] = []
        self._order = count()
        self.events = 0

    def now(self) -> float:
        """Virtual seconds."""
        return self._now

    def at(self, when: float, action: Action) -> Timer:
        """Do something at a time; what is due in the past happens now."""
        timer = Timer(action)
        heapq.heappush(self._due, (max(when, self._now), next(self._order), timer))
        return timer

    def after(self, seconds: float, action: Action) -> Timer:
        """Do something so much later."""
        return self.at(self._now + seconds, action)

    @property
    def next_due(self) -> float:
        """When something happens next; infinity for never."""
        while self._due and self._due[0][2].action is None:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else inf

    def step(self) -> bool:
        """Do what is due next. False when nothing is."""
        while self._due:
            when, _, timer = heapq.heappop(self._due)
            action, timer.action = timer.action, None
            if action is not None:
                self._now = when
                self.events += 1
                action()
                return True
        return False

    def run(self, until: float = inf) -> None:
        """Do everything that is due up to a time, which it then is."""
        while self.next_due <= until:
            self.step()
        if until < inf:
            self._now = max(self._now, until)
