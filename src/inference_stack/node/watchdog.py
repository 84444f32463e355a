"""Decides from what was heard of a worker whether it hangs. Pure: time is passed in."""

from __future__ import annotations

from dataclasses import dataclass

from inference_stack.wire.messages import FromWorker, Heartbeat, StepReport

QUIET_START_FACTOR = 6
"""A worker that still loads may be this many times longer silent: importing and mapping hold its threads up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds of silence, of one step, and of starting that are too long."""

    heartbeat: float
    step: float
    start: float


class Watchdog:
    """One worker's pulse."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._born = now
        self._heard = now
        self._progress = now
        self._steps = 0
        self._ready = False

    def ready(self, now: float) -> None:
        """The worker has loaded its models."""
        self._ready = True
        self._progress = now

    def hear(self, message: FromWorker, now: float) -> None:
        """Anything heard is a sign of life; a finished step, or having nothing to do, is progress."""
        self._heard = now
        if isinstance(message, StepReport):
            self._progress = now
        if isinstance(message, Heartbeat):
            if message.steps != self._steps or not message.busy:
                self._progress = now
            self._steps = message.steps

    def excuse(self, now: float) -> None:
        """Nobody listened for a while: silence up to now says nothing about the worker."""
        self._heard = self._progress = now

    def verdict(self, now: float) -> str | None:
        """Why the worker must be replaced, or None while it is healthy."""
        silence = self._limits.heartbeat * (1 if self._ready else QUIET_START_FACTOR)
        if now - self._heard > silence:
            return f"silent for {now - self._heard:.1f} s"
        if not self._ready and now - self._born > self._limits.start:
            return f"not ready after {now - self._born:.0f} s"
        if self._ready and now - self._progress > self._limits.step:
            return f"no step finished for {now - self._progress:.0f} s"
        return None
