"""What is measured of one model on an external server: how much runs there, and how fast. It tells neither itself.

Routing needs both: a server of unknown speed would look faster than every node that knows its own.
"""

from __future__ import annotations

from typing import Final

from inference_stack.core.stats import InstanceStats, StepTimeModel

WEIGHT: Final = 0.05
"""Of one observation in a running mean, once there are many."""


class Mean:
    """A running mean that begins as the plain one."""

    def __init__(self) -> None:
        self.value = 0.0
        self._count = 0

    def add(self, value: float) -> None:
        """One observation more."""
        self._count += 1
        self.value += (value - self.value) * max(WEIGHT, 1 / self._count)


class Load:
    """One model's. `places`: completions that the server is taken to run at once."""

    def __init__(self, model: str, places: int) -> None:
        self._model = model
        self._places = places
        self._step = Mean()
        self._beyond = Mean()
        self._prompt = Mean()
        self._prompt_tokens = self._generation_tokens = 0
        self.active = 0

    def first(self, prompt_tokens: int, seconds: float) -> None:
        """A completion's first token came after so long."""
        self._prompt_tokens += prompt_tokens
        self._beyond.add(max(0.0, seconds - self._step.value))
        self._prompt.add(prompt_tokens)

    def more(self, tokens: int, seconds: float) -> None:
        """So many tokens of one completion came, so long after those before them (0: with no pause to measure)."""
        self._generation_tokens += tokens
        if seconds and tokens:
            self._step.add(seconds / tokens)

    @property
    def step_time(self) -> StepTimeModel:
        """The speed, as routing takes it."""
        return StepTimeModel(base=self._step.value, per_token=self._beyond.value / max(1.0, self._prompt.value))

    def stats(self) -> InstanceStats:
        """All numbers now. What is beyond the places is taken to wait; KV memory is the server's own affair."""
        return InstanceStats(
            model=self._model,
            running=min(self.active, self._places),
            waiting=max(0, self.active - self._places),
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            step_time=self.step_time,
        )
