"""Reading a histogram from a Prometheus page, as the difference of two readings. Pure, but for fetching the page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.request import urlopen

ADDED = "inference_stack_added_latency_seconds"
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LE = re.compile(r'\ble="([^"]+)"')

Buckets = dict[float, float]
"""Upper bound in seconds: how many values were no larger."""


def fetch(port: int) -> str:
    """The page of a server of this machine."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def buckets(page: str, name: str) -> Buckets:
    """A histogram's cumulative counts, summed over its labels. Raises `ValueError` if the page has no such histogram."""
    found: Buckets = {}
    for line in page.splitlines():
        sample = _SAMPLE.match(line)
        if sample and sample["name"] == f"{name}_bucket" and (bound := _LE.search(sample["labels"] or "")):
            found[float(bound[1])] = found.get(float(bound[1]), 0.0) + float(sample["value"])
    if not found:
        raise ValueError(f"the server tells no {name}")
    return found


def difference(before: Mapping[float, float], after: Mapping[float, float]) -> Buckets:
    """What was added between two readings."""
    return {bound: count - before.get(bound, 0.0) for bound, count in sorted(after.items())}


def quantile(cumulative: Mapping[float, float], share: float) -> float:
    """The value that `share` of all stay under, by straight lines inside buckets; infinite above the last bound, 0 of nothing."""
    bounds = sorted(cumulative)
    total = cumulative[bounds[-1]] if bounds else 0.0
    lower, below = 0.0, 0.0
    for bound in bounds:
        if total and cumulative[bound] >= share * total:
            inside = cumulative[bound] - below
            if bound == float("inf"):
                return bound
            return lower + (bound - lower) * ((share * total - below) / inside if inside else 1.0)
        lower, below = bound, cumulative[bound]
    return 0.0
