"""What the layers of one step have in common, computed by the first that asks and forgotten when the next step begins."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from inference_stack.ops.api import StepInputs

T = TypeVar("T")


class StepCache:
    """Values by key for the step in hand. It holds that step's inputs until it sees another step."""

    def __init__(self) -> None:
        self._step: StepInputs | None = None
        self._values: dict[Hashable, Any] = {}

    def get(self, step: StepInputs, key: Hashable, make: Callable[[], T]) -> T:
        """The value for `key` in `step`, made on first use."""
        if step is not self._step:
            self._step = step
            self._values.clear()
        if key not in self._values:
            self._values[key] = make()
        value: T = self._values[key]
        return value
