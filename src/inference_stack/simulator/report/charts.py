"""Which charts a report shows, and of what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inference_stack.simulator.api import FloatArray
from inference_stack.simulator.report import axes
from inference_stack.simulator.report.numbers import interval_seconds
from inference_stack.simulator.report.saved import Report
from inference_stack.simulator.report.svg import Curve, Line, bar_chart, cdf_chart, time_chart

BARS = 20
MEASURES = (("ttft", "TTFT"), ("itl", "ITL"), ("e2e", "e2e"))


def of(report: Report) -> list[str]:
    """The charts of one run: the fleet over time, distributions of latency, what each tenant got."""
    found = [*_over_time(report), cdf_chart("Latency: share of values up to a time", _named(report))]
    tenants = report.summary["tenants"]
    served = [
        (tenant or "(no name)", entry["service"]) for tenant, entry in tenants.items() if entry["service"] is not None
    ]
    if len(served) > 1:
        most = sorted(served, key=lambda item: -item[1])[:BARS]
        which = f", the {BARS} most served of {len(served)} tenants" if len(served) > BARS else ""
        found.append(bar_chart(f"Service: tokens computed, divided by the tenant's weight{which}", most, axes.number))
    return found


def of_several(named: Sequence[tuple[str, Report]]) -> list[str]:
    """The same distribution of several runs over each other, a chart for each measure."""
    return [
        cdf_chart(
            f"{label}: share of values up to a time",
            [Curve(name, report.curves[key].values, report.curves[key].shares) for name, report in named],
        )
        for key, label in MEASURES
    ]


def _named(report: Report) -> list[Curve]:
    return [Curve(label, report.curves[key].values, report.curves[key].shares) for key, label in MEASURES]


def _over_time(report: Report) -> list[str]:
    series, seconds = report.series, float(report.summary["seconds"])
    lasted = interval_seconds(series, seconds)
    times = np.arange(series.nodes.size) * series.seconds + lasted
    shown = [
        ("Requests", [Line("running", series.running), Line("waiting", series.waiting)], None, True),
        (
            "Tokens a second",
            [Line("output", _over(series.tokens, lasted)), Line("prompt", _over(series.prompt_tokens, lasted))],
            None,
            False,
        ),
        ("KV memory in use, %", [Line("KV in use", 100 * _over(series.kv_used, series.kv_total))], 100.0, False),
        (
            "Devices busy, %",
            [Line("busy", 100 * np.minimum(_over(series.busy, series.nodes * lasted), 1.0))],
            100.0,
            False,
        ),
        ("Nodes", [Line("nodes", series.nodes)], None, True),
    ]
    return [
        time_chart(title, times, lines, seconds=seconds, marks=report.events, top=top, whole=whole)
        for title, lines, top, whole in shown
    ]


def _over(part: FloatArray, whole: FloatArray) -> FloatArray:
    """part / whole, and 0 where there is no whole."""
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
