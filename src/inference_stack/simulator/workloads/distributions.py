"""How lengths and pauses vary: a fixed value, a uniform one, a lognormal one between bounds.

A distribution is a few numbers; the randomness is the caller's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Protocol

import numpy as np

_QUANTILES = 1000


class Distribution(Protocol):
    """What a length in tokens, a number of turns or a pause in seconds is drawn from."""

    def draw(self, rng: np.random.Generator) -> float:
        """One value."""
        ...

    def mean(self) -> float:
        """The expected value."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always `value`."""

    value: float

    def draw(self, rng: np.random.Generator) -> float:
        return self.value

    def mean(self) -> float:
        return self.value


@dataclass(frozen=True, slots=True)
class Uniform:
    """Anything from `low` to `high`, alike."""

    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        return self.low + (self.high - self.low) * rng.random()

    def mean(self) -> float:
        return (self.low + self.high) / 2


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Median · exp(sigma · z) with z standard normal, clipped to [low, high]."""

    median: float
    sigma: float
    low: float = 0.0
    high: float = math.inf

    def draw(self, rng: np.random.Generator) -> float:
        return self._at(rng.standard_normal())

    def mean(self) -> float:
        """By quantiles: exact to about a percent, clipping included."""
        normal = NormalDist()
        return fmean(self._at(normal.inv_cdf((k + 0.5) / _QUANTILES)) for k in range(_QUANTILES))

    def _at(self, z: float) -> float:
        return min(max(self.median * math.exp(self.sigma * z), self.low), self.high)


def whole(distribution: Distribution, rng: np.random.Generator) -> int:
    """One value as a number of things: rounded, at least one."""
    return max(1, round(distribution.draw(rng)))
