"""Runs side by side: each number of the first against the others', and which way is better.

Compares summaries, so runs of today and kept ones alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from inference_stack.simulator.report import axes, charts, svg
from inference_stack.simulator.report.html import environment
from inference_stack.simulator.report.saved import Report

Verdict = Literal["better", "worse", "same", ""]

# What differs by less is the same.
TOLERANCE = 0.001


@dataclass(frozen=True)
class Metric:
    """A number of the summary, where it stands there, how it reads, and whether less or more of it is better (empty: neither)."""

    label: str
    path: tuple[str, ...]
    show: Callable[[float | None], str] = axes.number
    better: Literal["less", "more", ""] = ""

    def of(self, summary: Mapping[str, Any]) -> float | None:
        """Its value; None where there is none."""
        found: Any = summary
        for key in self.path:
            found = found[key]
        return None if found is None else float(found)


def _latencies() -> Iterator[Metric]:
    for label, key in (
        ("TTFT", "ttft"),
        ("ITL", "itl"),
        ("e2e", "e2e"),
        ("queue", "queue"),
        ("longest gap", "longest_gap"),
    ):
        for name in ("p50", "p95", "p99"):
            yield Metric(f"{label} {name}", ("latency", key, name), axes.duration, "less")


METRICS = (
    Metric("requests", ("requests", "total")),
    Metric("failed", ("requests", "error"), better="less"),
    Metric("refused", ("requests", "refused"), better="less"),
    Metric("still open at the end", ("requests", "open"), better="less"),
    Metric("goodput, share", ("goodput", "share"), axes.share, "more"),
    Metric("goodput, requests a second", ("goodput", "requests_per_second"), better="more"),
    *_latencies(),
    Metric("output tokens a second", ("throughput", "output_tokens_per_second"), better="more"),
    Metric("prompt tokens a second", ("throughput", "prompt_tokens_per_second"), better="more"),
    Metric("prefix hits, share of prompt tokens", ("prefix_hit_rate",), axes.share, "more"),
    Metric("utilisation", ("utilisation",), axes.share),
    Metric("KV memory, mean", ("kv", "mean"), axes.share),
    Metric("KV memory, peak", ("kv", "peak"), axes.share),
    Metric("waiting, mean", ("queue", "mean"), better="less"),
    Metric("waiting, peak", ("queue", "peak"), better="less"),
    Metric("preemptions", ("preemptions",), better="less"),
    Metric("moves", ("moves",), better="less"),
    Metric("fairness (Jain)", ("fairness", "jain"), better="more"),
    Metric("largest service gap, weighted tokens", ("fairness", "service_gap"), better="less"),
    Metric("nodes, mean", ("nodes", "mean")),
    Metric("node-hours", ("cost", "node_hours"), better="less"),
    Metric("dollars", ("cost", "dollars"), axes.dollars, "less"),
    Metric("dollars per million output tokens", ("cost", "dollars_per_million_output_tokens"), axes.dollars, "less"),
)


@dataclass(frozen=True)
class Row:
    """One metric of all runs, in their order. `ratios` and `verdicts` are against the first run; its own are None and empty."""

    metric: Metric
    values: tuple[float | None, ...]
    ratios: tuple[float | None, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """The values in words."""
        return tuple(self.metric.show(value) for value in self.values)


def compare(named: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """A row for each metric that any of these summaries has. The first run is the one the others are measured by."""
    rows = (_row(metric, [metric.of(summary) for summary in named.values()]) for metric in METRICS)
    return [row for row in rows if any(value is not None for value in row.values)]


def _row(metric: Metric, values: Sequence[float | None]) -> Row:
    first, *others = values
    return Row(
        metric,
        tuple(values),
        (None, *(None if other is None or not first else other / first for other in others)),
        ("", *(_verdict(metric, first, other) for other in others)),
    )


def _verdict(metric: Metric, first: float | None, other: float | None) -> Verdict:
    if first is None or other is None or not metric.better:
        return ""
    if metric.show(first) == metric.show(other) or abs(other - first) <= TOLERANCE * abs(first):
        return "same"
    return "better" if (other < first) == (metric.better == "less") else "worse"


def differences(named: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, tuple[str, ...]]]:
    """Settings that are not the same in all configurations: (where, its value in each; a dash where it is not set)."""
    flat = [dict(_settings(config)) for config in named.values()]
    places = dict.fromkeys(place for settings in flat for place in settings)
    rows = [(place, tuple(settings.get(place, axes.NOTHING) for settings in flat)) for place in places]
    return [(place, values) for place, values in rows if len(set(values)) > 1]


def _settings(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of a configuration with its place, such as fleet.nodes or tenants[0].weight."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _settings(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple) and value:
        for index, inner in enumerate(value):
            yield from _settings(inner, f"{place}[{index}]")
    else:
        yield place, str(value)


def render_comparison(named: Mapping[str, Report]) -> str:
    """One page about these runs, by the names they are given here: what differs, each number, distributions over each other."""
    return (
        environment()
        .get_template("comparison.html")
        .render(
            style=svg.STYLE,
            names=list(named),
            partial=[name for name, report in named.items() if not report.summary["complete"]],
            differences=differences({name: report.config for name, report in named.items()}),
            rows=compare({name: report.summary for name, report in named.items()}),
            charts=charts.of_several(list(named.items())),
        )
    )
