"""What is measured while a fleet runs: times between tokens, the fleet over time, events.

Collects; what it comes to is the report's business.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict

import numpy as np
import numpy.typing as npt

from inference_stack.simulator.api import FloatArray, Outcome, Series

ITL_EDGES: FloatArray = np.concatenate(([0.0], np.geomspace(1e-4, 1e3, 561)))
"""Eighty bins per decade: 2.9 % wide."""
_EDGES = ITL_EDGES.tolist()
COLUMNS = ("running", "waiting", "kv_used", "kv_total", "busy", "tokens", "prompt_tokens", "nodes")


class Ledger:
    """Filled by clients, gateways and fleet."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.outcomes: list[Outcome] = []
        self.events: list[tuple[float, str]] = []
        self.service: dict[str, float] = defaultdict(float)
        self.tokens = 0
        self.prompt_tokens = 0
        self._itl = np.zeros(len(ITL_EDGES) - 1, np.int64)
        self._columns: dict[str, list[float]] = {name: [] for name in COLUMNS}
        self._before: dict[str, float] = dict.fromkeys(("busy", "tokens", "prompt_tokens"), 0.0)

    def event(self, now: float, what: str) -> None:
        """Something to know of happened."""
        self.events.append((now, what))

    def gap(self, seconds: float) -> None:
        """A stream's next token came so much later."""
        self._itl[min(bisect_right(_EDGES, seconds), len(_EDGES) - 1) - 1] += 1

    def gaps(self, seconds: npt.NDArray[np.float64], streams: int) -> None:
        """So many streams saw these gaps."""
        places = np.searchsorted(ITL_EDGES, seconds, side="right") - 1
        np.add.at(self._itl, np.clip(places, 0, len(self._itl) - 1), streams)

    def sample(self, gauges: dict[str, float], busy: float) -> None:
        """The fleet at the end of an interval; `busy` is device time since the start."""
        totals = {"busy": busy, "tokens": float(self.tokens), "prompt_tokens": float(self.prompt_tokens)}
        for name, value in gauges.items():
            self._columns[name].append(value)
        for name, value in totals.items():
            self._columns[name].append(value - self._before[name])
        self._before = totals

    @property
    def itl(self) -> npt.NDArray[np.int64]:
        """Counts per bin of `ITL_EDGES`."""
        return self._itl

    def series(self) -> Series:
        """All samples."""
        return Series(seconds=self.interval, **{name: np.asarray(values) for name, values in self._columns.items()})
