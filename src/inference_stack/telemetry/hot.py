"""A histogram for the token path: prometheus-client's exposition, without its locks.

An observation is a bisection and two additions. It is for metrics that one thread observes and shows, as an event loop does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Observations:
    """The observations under one label value. `bounds` are the buckets' upper bounds, included, in order."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, or several equal ones."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class HotHistogram(Collector):
    """A histogram with one label."""

    def __init__(
        self, name: str, help: str, label: str, bounds: tuple[float, ...], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._help = help
        self._label = label
        self._bounds = bounds
        self._children: dict[str, Observations] = {}
        self._shown = (*map(floatToGoString, bounds), "+Inf")
        registry.register(self)

    def labels(self, value: str) -> Observations:
        """The observations under this label value; the same object every time."""
        found = self._children.get(value)
        if found is None:
            found = self._children[value] = Observations(self._bounds)
        return found

    def describe(self) -> Iterator[Metric]:
        """The name, so that a registry can refuse a second one."""
        yield HistogramMetricFamily(self._name, self._help, labels=[self._label])

    def collect(self) -> Iterator[Metric]:
        """One family, for a scrape."""
        family = HistogramMetricFamily(self._name, self._help, labels=[self._label])
        for value, seen in self._children.items():
            buckets = list(zip(self._shown, map(float, accumulate(seen.counts)), strict=True))
            family.add_metric([value], buckets, seen.total)
        yield family
