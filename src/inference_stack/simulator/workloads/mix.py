"""Several workloads as one.

Merged while they are iterated; knows nothing of how they came to be.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from inference_stack.simulator.api import Arrival, Workload


@dataclass(frozen=True, slots=True)
class Mix:
    """All arrivals of `parts` in order of time, numbered anew. The parts' seeds must differ, or they say the same.

    An arrival that follows another stays behind it, and goes where its part had it: the order of the others decides.
    """

    parts: Sequence[Workload]

    def __iter__(self) -> Iterator[Arrival]:
        # By part, from an arrival's number there to its number here: 8 bytes each.
        numbers = [array("q") for _ in self.parts]
        merged = heapq.merge(*(_timed(index, part) for index, part in enumerate(self.parts)))
        for number, (_, index, _, arrival) in enumerate(merged):
            known = numbers[index]
            known.append(number)
            follows = None if arrival.follows is None else known[arrival.follows]
            yield replace(arrival, number=number, follows=follows)


def _timed(index: int, part: Workload) -> Iterator[tuple[float, int, int, Arrival]]:
    """Arrivals behind what they are ordered by: time, then part, then number. A follower has the time of the last that has one."""
    at = 0.0
    for arrival in part:
        at = arrival.at if arrival.follows is None else at
        yield at, index, arrival.number, arrival
