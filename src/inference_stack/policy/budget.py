"""How much one step may carry: a token budget, and a time target while streams are being decoded.

Decode rows are charged first; prompt chunks get what is left. Knows only counts and the fitted step-time model.
"""

from __future__ import annotations

from typing import Final

from inference_stack.core.stats import StepTimeModel

MIN_CHUNK: Final = 16
"""Tokens of prompt that go into every step even when the time target is missed, so that prompts never starve."""


class StepBudget:
    """What is left of one step. `target` is in seconds (None: no limit but `max_tokens`)."""

    def __init__(self, max_tokens: int, target: float | None = None, model: StepTimeModel | None = None) -> None:
        self.tokens = max_tokens
        self._model = model or StepTimeModel()
        self._seconds = None if target is None else target - self._model.base
        self._floor = MIN_CHUNK

    def charge(self, tokens: int, rows: int, context: int) -> None:
        """These rows are in the step."""
        self.tokens -= tokens
        if self._seconds is not None:
            self._seconds -= self._model.predict(tokens, rows, context) - self._model.base

    def chunk(self, start: int, want: int) -> int:
        """How many of `want` prompt tokens beginning at position `start` may join the step (0: none)."""
        most = min(want, self.tokens)
        if self._seconds is None or most <= 0:
            return max(most, 0)
        model = self._model
        left = self._seconds - model.per_row - model.per_context * start
        each = model.per_token + model.per_context
        within = int(left / each) if each > 0.0 and left > 0.0 else (most if left > 0.0 else 0)
        return max(min(most, within), min(most, self._floor))

    def charge_chunk(self, start: int, tokens: int) -> None:
        """A chunk of `tokens` tokens from `start` is in the step."""
        self.charge(tokens, 1, start + tokens)
        self._floor = max(0, self._floor - tokens)
