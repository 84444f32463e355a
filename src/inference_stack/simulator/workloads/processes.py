"""When requests come: arrival processes, as endless ascending times in seconds from 0.

Rates are requests per second. What a request contains, and when to stop, is for others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from inference_stack.simulator.api import FloatArray

_CHUNK = 256
"""Gaps drawn at once: numpy's cost per call is spread over them."""


class Process(Protocol):
    """A point process in time."""

    def times(self, rng: np.random.Generator, factor: float = 1.0) -> Iterator[float]:
        """Arrival times with every rate multiplied by `factor`, and nothing else about the process changed."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """One every 1/rate seconds, the first at 0."""

    rate: float

    def times(self, rng: np.random.Generator, factor: float = 1.0) -> Iterator[float]:
        gap = 1.0 / (self.rate * factor)
        return (gap * count for count in itertools.count())


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent of each other: exponential gaps."""

    rate: float

    def times(self, rng: np.random.Generator, factor: float = 1.0) -> Iterator[float]:
        gap = 1.0 / (self.rate * factor)
        return _summed(lambda: rng.exponential(gap, _CHUNK))


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gamma-distributed gaps whose coefficient of variation is `cv`: 1 is Poisson, above it bursty, below it even."""

    rate: float
    cv: float

    def times(self, rng: np.random.Generator, factor: float = 1.0) -> Iterator[float]:
        shape = self.cv**-2
        scale = 1.0 / (self.rate * factor * shape)
        return _summed(lambda: rng.gamma(shape, scale, _CHUNK))


class State(NamedTuple):
    """A state of an `Mmpp`: its rate, and how long it lasts on average, in seconds (exponentially distributed)."""

    rate: float
    dwell: float


@dataclass(frozen=True, slots=True)
class Mmpp:
    """Markov-modulated Poisson process: Poisson within a state; after its dwell any other state follows, all alike.

    It starts in a state drawn by the share of time spent there, so no warm-up is needed. Some state has a rate above 0.
    """

    states: tuple[State, ...]

    @property
    def rate(self) -> float:
        """The mean rate in the long run."""
        return sum(state.rate * state.dwell for state in self.states) / sum(state.dwell for state in self.states)

    def times(self, rng: np.random.Generator, factor: float = 1.0) -> Iterator[float]:
        # Leaving for any other state alike visits all equally often, so a state's share of time is that of its dwell.
        dwells = np.array([state.dwell for state in self.states])
        current = int(rng.choice(len(self.states), p=dwells / dwells.sum()))
        begin = 0.0
        while True:
            state = self.states[current]
            end = begin + rng.exponential(state.dwell)
            yield from _poisson_between(rng, state.rate * factor, begin, end)
            begin = end
            current = (current + int(rng.integers(1, len(self.states)))) % len(self.states)


@dataclass(frozen=True, slots=True)
class Diurnal:
    """A Poisson process whose rate follows a curve that repeats every `period` seconds.

    `rates` are the curve's values at even distances, the first at time 0; straight lines join them, the last to the first. Made by
    thinning (Lewis and Shedler, 1979): candidates at the peak's rate, each kept with the chance of its moment's.
    """

    rates: tuple[float, ...]
    period: float = 86_400.0

    def times(self, rng: np.random.Generator, factor: float = 1.0) -> Iterator[float]:
        peak = max(self.rates)
        for candidate in Poisson(peak).times(rng, factor):
            if rng.random() * peak < self._rate_at(candidate):
                yield candidate

    def _rate_at(self, time: float) -> float:
        place = time % self.period / self.period * len(self.rates)
        before = int(place) % len(self.rates)
        after = (before + 1) % len(self.rates)
        return self.rates[before] + (place - int(place)) * (self.rates[after] - self.rates[before])


def _summed(gaps: Callable[[], FloatArray]) -> Iterator[float]:
    now = 0.0
    while True:
        times = (now + np.cumsum(gaps())).tolist()
        yield from times
        now = times[-1]


def _poisson_between(rng: np.random.Generator, rate: float, begin: float, end: float) -> Iterator[float]:
    if rate <= 0.0:
        return
    time = begin + rng.exponential(1.0 / rate)
    while time < end:
        yield time
        time += rng.exponential(1.0 / rate)
