"""Decides from what is heard of a node whether its link is dead, in one direction or both. Pure: time is passed in.

Used by both ends of a link.
"""

from __future__ import annotations

from collections import deque

from inference_stack.wire.messages import Beat


class Pulse:
    """One link's signs of life. `silence` seconds without any, or of beats that show that ours do not arrive, are too long."""

    def __init__(self, silence: float, now: float) -> None:
        self._silence = silence
        self._heard_at = now
        self._looked_at = now
        self._heard = 0
        self._sent = 0
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
        self._unanswered.append((self._sent, now))
        return Beat(number=self._sent, heard=self._heard)

    def hear(self, message: object, now: float) -> None:
        """Anything heard is a sign of life; a beat also says which of ours arrived."""
        self._heard_at = now
        if isinstance(message, Beat):
            self._heard = message.number
            self._confirmed = max(self._confirmed, message.heard)
            while self._unanswered and self._unanswered[0][0] <= message.heard:
                self._unanswered.popleft()
            self._cut = bool(self._unanswered) and now - self._unanswered[0][1] > self._silence

    def verdict(self, now: float) -> str | None:
        """Why the link must be given up, or None while it is well. To be asked regularly."""
        overslept = now - self._looked_at > self._silence / 2
        self._looked_at = now
        if overslept:  # it is we who were paused: what the other side said meanwhile is still unread
            self._heard_at = now
            self._unanswered.clear()
            self._cut = False
        if self._cut:
            return f"nothing sent has arrived for {self._silence:.1f} s"
        if now - self._heard_at > self._silence:
            return f"silent for {now - self._heard_at:.1f} s"
        return None
