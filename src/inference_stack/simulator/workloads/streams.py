"""Numbers for the token streams of one workload: which text is the same as which.

Knows nothing of times, lengths or tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

from inference_stack.simulator.tokens import derive, mix64


class Streams:
    """Hands out stream numbers: unsigned 64-bit, never the same twice, a function of the seed and of what was asked before."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._base = derive(seed, 1)
        self._taken = 0

    def fresh(self) -> int:
        """A number not handed out before: for an answer, or for text that nothing shares."""
        self._taken += 1
        return mix64(self._base + self._taken)

    def family(self, number: int, names: Iterable[int]) -> list[int]:
        """A number for each name, always the same one; different names, or those of another family, get others."""
        base = derive(self._seed, 2, number)
        return [mix64(base + name) for name in names]
