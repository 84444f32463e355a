"""Finding the highest rate that a system keeps up with: doubling, then halving the gap, each step a short trial.

Pure: a trial is a function from a rate to what the generator found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Trial = Callable[[float], Mapping[str, Any]]

KEPT_UP = 0.99
RESOLUTION = 1.06
"""Where the gap between kept and lost is narrower than this factor, the search ends."""


def sustained(found: Mapping[str, Any], ttft_ms: float) -> bool:
    """Whether a trial was kept up with: no error, at least 99 % of the rate, p99 TTFT within bounds."""
    return not found["errors"] and found["kept_up"] >= KEPT_UP and found["ttft_ms"]["p99"] <= ttft_ms


@dataclass
class Search:
    """The state of one search: highest rate kept, lowest lost, every trial."""

    trial: Trial
    ttft_ms: float
    best: float = 0.0
    worst: float = float("inf")
    trials: list[dict[str, Any]] = field(default_factory=list)

    def attempt(self, rate: float) -> bool:
        """Try a rate and remember what came of it."""
        found = self.trial(rate)
        kept = sustained(found, self.ttft_ms)
        self.trials.append({"rate": round(rate, 2), "kept": kept, **found})
        if kept:
            self.best = max(self.best, rate)
        else:
            self.worst = min(self.worst, rate)
        return kept

    def run(self, guess: float, limit: int = 12) -> float:
        """The highest rate kept, from a first guess; 0 where even a hundredth of it is too much."""
        rate = guess
        while len(self.trials) < limit and rate >= guess / 100:
            self.attempt(rate)
            if self.best and self.worst / self.best <= RESOLUTION:
                break
            rate = self._next(rate)
        return self.best

    def _next(self, rate: float) -> float:
        if self.worst == float("inf"):
            return rate * 1.5
        if not self.best:
            return rate / 2
        return float((self.best * self.worst) ** 0.5)


def confirm(search: Search, long_trial: Trial, attempts: int = 4) -> tuple[float, Mapping[str, Any]]:
    """A rate that also holds for long, from the best one downwards in steps of 7 %; and its long trial. 0 if none does."""
    rate, found = search.best, {}
    for _ in range(attempts):
        if not rate:
            break
        found = dict(long_trial(rate))
        if sustained(found, search.ttft_ms):
            return rate, found
        rate *= 0.93
    return 0.0, found
