"""One HTML page about a run: headline numbers, charts, tables, events and the configuration.

The page holds all it needs, runs no script and asks for nothing: a content policy inside it makes the browser keep to that. What
came from a configuration is escaped by the templates.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference_stack.config.load import dump
from inference_stack.simulator.api import Run
from inference_stack.simulator.report import axes, charts, svg
from inference_stack.simulator.report.saved import Report, report_of

if TYPE_CHECKING:
    from jinja2 import Environment

LISTED_EVENTS = 200
LISTED_TENANTS = 50
LATENCIES = (
    ("TTFT", "ttft"),
    ("ITL", "itl"),
    ("e2e", "e2e"),
    ("queue", "queue"),
    ("longest gap", "longest_gap"),
)

Card = tuple[str, str, str]


def render(run: Run, summary: dict[str, Any]) -> str:
    """The page of a run whose numbers are `summary`."""
    return page(report_of(run, summary))


def page(report: Report) -> str:
    """The page of a report, of a run just made or one that was kept."""
    summary = report.summary
    tenants = sorted(summary["tenants"].items(), key=lambda item: -item[1]["requests"])
    return (
        environment()
        .get_template("page.html")
        .render(
            summary=summary,
            style=svg.STYLE,
            cards=cards(summary),
            latencies=[(label, summary["latency"][key]) for label, key in LATENCIES],
            charts=charts.of(report),
            tenants=tenants[:LISTED_TENANTS],
            more_tenants=len(tenants[LISTED_TENANTS:]),
            events=report.events[:LISTED_EVENTS],
            more_events=len(report.events[LISTED_EVENTS:]),
            config=dump(report.config),
        )
    )


def environment() -> Environment:
    """The templates, with escaping on and names that must exist."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (axes.duration, axes.clock, axes.number, axes.factor, axes.share, axes.dollars)
    found.filters |= {word.__name__: word for word in words}
    return found


def cards(summary: dict[str, Any]) -> list[Card]:
    """The headline: (what, its value, a word beside it)."""
    return [*_traffic(summary), *_latency(summary), *_fleet(summary), *_money(summary)]


def _traffic(summary: dict[str, Any]) -> list[Card]:
    requests, rates, goodput = summary["requests"], summary["throughput"], summary["goodput"]
    fates = [f"{axes.number(requests['length'] + requests['stop'])} finished"]
    fates += [f"{axes.number(requests[kind])} {word}" for kind, word in _FATES if requests[kind]]
    return [
        ("Requests", axes.number(requests["total"]), ", ".join(fates)),
        (
            "Goodput",
            axes.share(goodput["share"]),
            f"finished in time, {axes.number(goodput['requests_per_second'])} a second",
        ),
        (
            "Output tokens/s",
            axes.number(rates["output_tokens_per_second"]),
            f"prompts {axes.number(rates['prompt_tokens_per_second'])} tokens/s",
        ),
    ]


_FATES = (("error", "failed"), ("refused", "refused"), ("open", "still open"))


def _latency(summary: dict[str, Any]) -> list[Card]:
    return [
        (
            f"{label} p95",
            axes.duration(summary["latency"][key]["p95"]),
            f"median {axes.duration(summary['latency'][key]['p50'])}, p99 {axes.duration(summary['latency'][key]['p99'])}",
        )
        for label, key in LATENCIES[:3]
    ]


def _fleet(summary: dict[str, Any]) -> list[Card]:
    nodes, kv, queue = summary["nodes"], summary["kv"], summary["queue"]
    moved = f"{axes.number(summary['preemptions'])} preemptions, {axes.number(summary['moves'])} moves"
    return [
        (
            "Utilisation",
            axes.share(summary["utilisation"]),
            f"of {axes.number(nodes['mean'])} nodes, at most {axes.number(nodes['peak'])}",
        ),
        ("KV memory", axes.share(kv["mean"]), f"on average, peak {axes.share(kv['peak'])}"),
        ("Prefix hits", axes.share(summary["prefix_hit_rate"]), "of prompt tokens"),
        ("Waiting", axes.number(queue["mean"]), f"on average, at most {axes.number(queue['peak'])}; {moved}"),
    ]


def _money(summary: dict[str, Any]) -> list[Card]:
    cost, fair = summary["cost"], summary["fairness"]
    hours = f"{axes.number(cost['node_hours'])} node-hours"
    per_million = f"{axes.dollars(cost['dollars_per_million_output_tokens'])} per million output tokens"
    found = [
        ("Cost", hours, "no price given")
        if cost["dollars"] is None
        else ("Cost", axes.dollars(cost["dollars"]), f"{hours}, {per_million}")
    ]
    if len(summary["tenants"]) > 1:
        gap = f"largest gap {axes.number(fair['service_gap'])} weighted tokens"
        found.append(("Fairness (Jain)", axes.number(fair["jain"]), gap))
    return found
