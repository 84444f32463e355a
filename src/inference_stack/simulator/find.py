"""The smallest fleet that meets an SLO: how many nodes of the first kind, everything else as it is.

Doubles until the SLO is met, then halves the interval. More nodes are taken to serve no worse, which holds but for noise; that the
answer's neighbour below fails has been seen, not assumed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from inference_stack.core.errors import invalid
from inference_stack.simulator.fleet import Fleet, FleetSpec
from inference_stack.simulator.report.numbers import summarise

MOST_NODES: Final = 4096
_LATENCY: Final = re.compile(r"(ttft|itl|e2e|queue|longest_gap)_(p50|p90|p95|p99|mean)")
_SHARES: Final = {"share": "share of requests that ended well, within their deadlines"}


@dataclass(frozen=True, slots=True)
class Slo:
    """Bounds by name: latencies such as `ttft_p95` in seconds at most, `share` of good requests at least."""

    bounds: Mapping[str, float]

    def broken(self, summary: Mapping[str, Any]) -> list[str]:
        """What a run does not meet, as sentences. A latency that nobody had is met."""
        return [said for name, bound in self.bounds.items() if (said := _broken(name, bound, summary))]


def parse_slo(text: str) -> Slo:
    """From "ttft_p95=1.5,itl_p95=0.05,share=0.99". Raises `InferenceError` naming what is not understood."""
    bounds = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = part.partition("=")
        try:
            bounds[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals or not (_LATENCY.fullmatch(name.strip()) or name.strip() in _SHARES):
            raise invalid(
                f"an SLO is written like ttft_p95=1.5,itl_p95=0.05,share=0.99 (seconds and shares), not {part!r}",
                param="find",
            )
    if not bounds:
        raise invalid("the SLO is empty", param="find")
    return Slo(bounds)


def _broken(name: str, bound: float, summary: Mapping[str, Any]) -> str:
    if name == "share":
        found = summary["goodput"]["share"]
        return "" if found is None or found >= bound else f"share {found:.4f} < {bound:g}"
    match = _LATENCY.fullmatch(name)
    assert match is not None
    found = summary["latency"][match[1]][match[2]]
    return "" if found is None or found <= bound else f"{name} {found:.4g} s > {bound:g} s"


@dataclass(frozen=True, slots=True)
class Trial:
    """One fleet that was tried: its nodes of the first kind, its numbers, and what of the SLO it does not meet."""

    nodes: int
    summary: dict[str, Any]
    broken: tuple[str, ...]

    @property
    def meets(self) -> bool:
        """Whether it meets the SLO."""
        return not self.broken


Evaluate = Callable[[int], dict[str, Any]]


def sized(spec: FleetSpec, nodes: int) -> FleetSpec:
    """The fleet with so many nodes of its first kind."""
    first, *others = spec.nodes
    return replace(spec, nodes=(replace(first, count=nodes), *others))


def evaluate(spec: FleetSpec, nodes: int) -> dict[str, Any]:
    """The numbers of the fleet at that size."""
    return summarise(Fleet(sized(spec, nodes)).run())


def search(measure: Evaluate, slo: Slo, most: int = MOST_NODES) -> Iterator[Trial]:
    """Every fleet that is tried, in order. The last that meets the SLO is the smallest; there is none if `most` nodes do not."""

    def trial(nodes: int) -> Trial:
        summary = measure(nodes)
        return Trial(nodes, summary, tuple(slo.broken(summary)))

    low, high = 0, 1
    while True:
        tried = trial(high)
        yield tried
        if tried.meets:
            break
        if high == most:
            return
        low, high = high, min(2 * high, most)
    while high - low > 1:
        tried = trial((low + high) // 2)
        yield tried
        low, high = (low, tried.nodes) if tried.meets else (tried.nodes, high)


def smallest(trials: list[Trial]) -> Trial | None:
    """The smallest fleet among those tried that meets the SLO."""
    return min((trial for trial in trials if trial.meets), key=lambda trial: trial.nodes, default=None)
