"""Links on virtual time: one direction each, with latency, loss, reordering and cuts.

    ordered    like a connection: what is sent while it is cut waits, and arrives in order when it is mended
    unordered  like events that nobody waits for: may be lost, may overtake one another

A message is handed over at once with the time at which it arrives, unless something has to happen just then.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Generic, TypeVar

from inference_stack.simulator.loop import Loop

M = TypeVar("M")


class Pipe(Generic[M]):
    """An ordered, reliable direction of a link. `deliver(message, at, held)` is called as soon as it is known that it arrives, and
    when: `at`. `held` messages had to wait for the link."""

    def __init__(self, loop: Loop, latency: float, deliver: Callable[[M, float, bool], None]) -> None:
        self.cut = False
        self._loop = loop
        self._latency = latency
        self._deliver = deliver
        self._held: list[M] = []

    def send(self, message: M) -> None:
        """Deliver, or keep until the link is mended."""
        if self.cut:
            self._held.append(message)
        else:
            self._deliver(message, self._loop.now() + self._latency, False)

    def mend(self) -> None:
        """Deliver what waited."""
        self.cut = False
        held, self._held = self._held, []
        for message in held:
            self._deliver(message, self._loop.now() + self._latency, True)

    def reset(self) -> None:
        """The connection is gone with all that waited. A cut stays a cut."""
        self._held.clear()


class Drizzle(Generic[M]):
    """An unordered, lossy direction: each message is lost with probability `loss`, else arrives up to `jitter` seconds late."""

    def __init__(self, loop: Loop, latency: float, deliver: Callable[[M], None], chance: random.Random) -> None:
        self.loss = 0.0
        self.jitter = 0.0
        self.lost = 0
        self._loop = loop
        self._latency = latency
        self._deliver = deliver
        self._chance = chance

    def send(self, message: M) -> None:
        """Let it go."""
        if self.loss and self._chance.random() < self.loss:
            self.lost += 1
            return
        late = self.jitter * self._chance.random() if self.jitter else 0.0
        if not late and not self._latency:
            self._deliver(message)
        else:
            self._loop.after(self._latency + late, lambda: self._deliver(message))
