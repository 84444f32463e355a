"""Times work on a device: events around it on cards, the host's clock on CPUs; after a warm-up, many times, the median.

Inputs should be drawn at random, and there should be several sets of them, together several times the last cache: otherwise it is
the cache that is measured. Where there cannot be, `cached` says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from bench.gpu.place import Place

ROTATED_BYTES = 512 << 20
"""Of the inputs that take turns: several times the largest last-level cache of any card."""
MOST_SETS = 64
CACHES = 4
"""Inputs that come to less than so many last-level caches may be found there again when their turn comes."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one run: the median of `runs`, and a tenth and nine tenths of them lie below `low` and `high`."""

    seconds: float
    low: float
    high: float
    runs: int

    @property
    def spread(self) -> float:
        """How far apart most runs were, as a part of the median: differences below it are noise."""
        return (self.high - self.low) / self.seconds if self.seconds else 0.0

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"spread": self.spread}


def summary(seconds: Sequence[float]) -> Timing:
    """Of the times of single runs."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return Timing(median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered))


def sets_for(nbytes: int, place: Place) -> int:
    """How many sets of inputs of so many bytes should take turns."""
    if not place.on_card:
        return 2
    return min(max(2, -(-ROTATED_BYTES // max(nbytes, 1))), MOST_SETS)


def cached(nbytes: float, place: Place) -> bool:
    """Whether inputs of so many bytes, all sets together, may still lie in the card's last cache. Never on CPUs."""
    return nbytes < CACHES * place.cache_bytes


def timed(
    work: Callable[[int], object], place: Place, turns: int = 1, seconds: float = 0.3, least: int = 7, most: int = 400
) -> Timing:
    """The time of `work(i)`, i being the number of the inputs' set, 0 … turns-1. It may only queue work.

    Repeats for about so many `seconds`, at least and at most so often. On cards all runs are queued one behind the other, each
    between two events, so that the host's own time does not count as long as it keeps ahead.
    """
    if place.tiny:
        least, most = 2, 3
    for turn in range(turns):
        work(turn)
    place.wait()
    began = time.perf_counter()
    work(0)
    place.wait()
    once = max(time.perf_counter() - began, 1e-6)
    count = min(max(int(seconds / once), least), most)
    runs = _on_card(work, count, turns, place) if place.on_card else _on_host(work, count, turns)
    return summary(runs)


def _on_card(work: Callable[[int], object], count: int, turns: int, place: Place) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * count)]  # type: ignore[no-untyped-call]
    for run in range(count):
        events[2 * run].record()
        work(run % turns)
        events[2 * run + 1].record()
    place.wait()
    return [events[2 * run].elapsed_time(events[2 * run + 1]) / 1000 for run in range(count)]


def _on_host(work: Callable[[int], object], count: int, turns: int) -> list[float]:
    found = []
    for run in range(count):
        began = time.perf_counter()
        work(run % turns)
        found.append(time.perf_counter() - began)
    return found


def replayed(work: Callable[[int], object], place: Place, turns: int = 1, seconds: float = 0.3) -> Timing:
    """As `timed`, of work so short that the host does not keep ahead: all turns are recorded as one graph, which is replayed.

    What `work` keeps for the next time has to be there after one round: no host memory may be sent while it is recorded. The time
    of one `work` is the graph's by the number of turns. On CPUs the same as `timed`.
    """
    if not place.on_card:
        return timed(work, place, turns, seconds)
    for turn in range(turns):  # what compiles must not do so while it is recorded
        work(turn)
    place.wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for turn in range(turns):
            work(turn)
    found = timed(lambda _: graph.replay(), place, 1, seconds)
    return Timing(found.seconds / turns, found.low / turns, found.high / turns, found.runs)
