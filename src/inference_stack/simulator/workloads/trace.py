"""A workload from a recorded trace: its own times and lengths, a window of it, at another scale or speed.

Reads the file while it is iterated, so a trace of any length costs no memory. Knows no file format.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from inference_stack.simulator.api import Arrival, Segment
from inference_stack.simulator.workloads.contents import Ask
from inference_stack.simulator.workloads.generated import arrival
from inference_stack.simulator.workloads.rows import BLOCK, Place, Row
from inference_stack.simulator.workloads.streams import Streams
from inference_stack.simulator.workloads.tenants import Tenant, TenantMix

JITTER_SECONDS = 1.0
"""Further copies of a row come up to this much of the trace's time after it."""


@dataclass(slots=True, kw_only=True)
class Trace:
    """The rows of `path` as `read` finds them.

    `start` and `duration` cut a window, in seconds of the trace since its first row; the run begins with the window. `limit` ends
    it after so many requests of the trace. `speed` is trace seconds per second of the run. `scale`: each row arrives so often, in
    expectation; copies have contents of their own, which they share among themselves as the trace's requests do. Failed rows
    never arrive: `failed` counts those met by the latest iteration. Iterating raises `InferenceError` for a bad row, or one out of
    order.
    """

    path: Path
    read: Callable[[Path], Iterator[Row]]
    tenants: tuple[Tenant, ...] = ()
    start: float = 0.0
    duration: float = math.inf
    limit: int | None = None
    scale: float = 1.0
    speed: float = 1.0
    seed: int = 0
    failed: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[Arrival]:
        who, streams, tenants = np.random.default_rng([self.seed, 1]), Streams(self.seed), TenantMix(self.tenants)
        for number, (at, copy, row) in enumerate(self._copies()):
            ask = Ask(_prompt(row, copy, streams), row.output_tokens, streams.fresh())
            yield arrival(number, ask, tenants.draw(who), at / self.speed)

    def _copies(self) -> Iterator[tuple[float, int, Row]]:
        """(time, which copy, row) in order of time. Copies wait on a heap until no earlier row can come."""
        rng = np.random.default_rng([self.seed, 0])
        base, part = divmod(self.scale, 1.0)
        serial = itertools.count()
        waiting: list[tuple[float, int, int, Row]] = []
        for row in self._window():
            while waiting and waiting[0][0] <= row.at:
                at, _, copy, earlier = heapq.heappop(waiting)
                yield at, copy, earlier
            copies = int(base) + int(part > 0.0 and rng.random() < part)
            if copies:
                yield row.at, 0, row
            for copy, delay in enumerate((rng.random(max(copies - 1, 0)) * JITTER_SECONDS).tolist(), start=1):
                heapq.heappush(waiting, (row.at + delay, next(serial), copy, row))
        while waiting:
            at, _, copy, earlier = heapq.heappop(waiting)
            yield at, copy, earlier

    def _window(self) -> Iterator[Row]:
        """The rows to take, timed from the window's start."""
        self.failed = 0
        taken = 0
        for since, row in self._timed():
            if since >= self.start + self.duration or taken == self.limit:
                return
            if since < self.start:
                continue
            if row.output_tokens == 0:
                self.failed += 1
                continue
            taken += 1
            yield row._replace(at=since - self.start)

    def _timed(self) -> Iterator[tuple[float, Row]]:
        """The rows with the seconds since the first."""
        first = last = math.nan
        for row in self.read(self.path):
            first = row.at if math.isnan(first) else first
            if row.at < last:
                raise Place(self.path, row.line).problem("earlier than the row before; a trace is in order of time")
            last = row.at
            yield last - first, row


def _prompt(row: Row, copy: int, streams: Streams) -> tuple[Segment, ...]:
    if not row.blocks:
        return (Segment(streams.fresh(), 0, row.prompt_tokens),)
    *full, last = streams.family(copy, row.blocks)
    rest = row.prompt_tokens - BLOCK * len(full)
    return (*(Segment(source, 0, BLOCK) for source in full), Segment(last, 0, rest))
