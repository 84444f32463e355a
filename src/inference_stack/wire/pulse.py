"""Decides from what is heard of a node whether its link is dead, in one direction or both. Pure: time is passed in.

Used by both ends of a link.
"""

from __future__ import annotations

from collections import deque

from inference_stack.wire.messages import Beat

LOOKS_PER_SILENCE = 5
"""At least so often must be looked before silence is believed."""
BEYOND = 0.005
"""Seconds; later than a silence ends by what timers are early or late."""


class Pulse:
    """One link's signs of life. `silence` seconds without any, or of beats that show that ours do not arrive, are too long.

    Ours may arrive late, behind much else that the other side has yet to read: that is no cut as long as more and more arrive.

    Time counts only as fast as we look: between two looks at most a fifth of `silence` passes, however long ago the first was.
    Who is paused or overloaded reads late what was said in time, and must not blame the other side for it.
    """

    def __init__(self, silence: float, now: float) -> None:
        self._silence = silence
        self._looked_at = now
        self._passed = 0.0
        self._heard_at = 0.0
        self._heard = 0
        self._sent = 0
        self._answered_at = 0.0
        self._confirmed = 0
        self._unanswered: deque[tuple[int, float]] = deque()
        self._cut = False

    @property
    def sent(self) -> int:
        """The number of our last beat."""
        return self._sent

    @property
    def confirmed(self) -> int:
        """Our newest beat that is known to have arrived; and with it everything sent before it."""
        return self._confirmed

    def beat(self, now: float) -> Beat:
        """The next beat to send."""
        self._sent += 1
        self._unanswered.append((self._sent, self._time(now)))
        return Beat(number=self._sent, heard=self._heard)

    def hear(self, message: object, now: float) -> None:
        """Anything heard is a sign of life; a beat also says which of ours arrived."""
        self._heard_at = now = self._time(now)
        if isinstance(message, Beat):
            self._heard = message.number
            self._confirmed = max(self._confirmed, message.heard)
            while self._unanswered and self._unanswered[0][0] <= message.heard:
                self._unanswered.popleft()
                self._answered_at = now
            waiting_since = max(self._answered_at, self._unanswered[0][1]) if self._unanswered else now
            self._cut = now - waiting_since > self._silence

    def verdict(self, now: float) -> str | None:
        """Why the link must be given up, or None while it is well. To be asked regularly."""
        self._passed = self._time(now)
        self._looked_at = now
        if self._cut:
            return f"nothing sent has arrived for {self._silence:.1f} s"
        if self._passed - self._heard_at > self._silence:
            return f"silent for {self._passed - self._heard_at:.1f} s"
        return None

    def patience(self, now: float) -> float:
        """Seconds after which the verdict should be asked at the latest: just beyond the silence that is left."""
        return max(0.0, self._silence - (self._time(now) - self._heard_at)) + BEYOND

    def _time(self, now: float) -> float:
        """Seconds that count, since the link began."""
        return self._passed + min(now - self._looked_at, self._silence / LOOKS_PER_SILENCE)
