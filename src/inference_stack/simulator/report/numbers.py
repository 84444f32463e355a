"""A run as plain numbers: latency, throughput, goodput, memory, fairness, cost.

Reads outcomes and series and nothing else. Every number is of JSON's own kinds; what cannot be known, such as the median of
nothing, is None and never NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from inference_stack.simulator.api import FloatArray, Outcome, Run, Series

BoolArray = npt.NDArray[np.bool_]
Numbers = dict[str, float | None]

FINISHES = ("length", "stop", "error", "refused", "open")
PERCENTILES = (50, 90, 95, 99)


def summarise(run: Run) -> dict[str, Any]:
    """Everything that a run amounts to, ready for JSON. Times in seconds, shares from 0 to 1.

    TTFT and queue are of requests that got a token, longest gaps of those that waited for a second one, e2e of those that finished.
    Throughput counts every emitted token, and the prompts (cached tokens included) of requests that got one.
    Goodput counts all arrivals: one that failed, was refused or was still open when the run ended is not good.
    """
    requests = Requests.of(run.outcomes)
    return {
        "complete": run.complete,
        "seconds": run.seconds,
        "requests": {"total": len(run.outcomes)} | _finishes(run.outcomes),
        "latency": _latency(requests) | {"itl": histogram_numbers(run.itl_edges, run.itl_counts)},
        **_rates(run, requests),
        **_fleet(run.series, run.seconds),
        "preemptions": run.preemptions,
        "moves": sum(outcome.moves for outcome in run.outcomes),
        "fairness": fairness(run.service),
        "tenants": _tenants(run, requests),
        "priorities": _priorities(run, requests),
        "cost": _cost(run, float(requests.output.sum())),
        "simulation": {
            "steps": run.steps,
            "wall_seconds": run.wall_seconds,
            "simulated_seconds_per_wall_second": ratio(run.seconds, run.wall_seconds),
        },
    }


@dataclass(frozen=True, slots=True)
class Requests:
    """Outcomes as columns, one entry per request. `ttft` and `e2e` are NaN where there was none."""

    ttft: FloatArray
    e2e: FloatArray
    queued: FloatArray
    gap: FloatArray
    prompt: FloatArray
    cached: FloatArray
    output: FloatArray
    started: BoolArray
    finished: BoolArray
    good: BoolArray

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Requests:
        """The columns of these outcomes."""
        arrived = _column([outcome.arrived for outcome in outcomes])
        finished = np.array([outcome.finish in ("length", "stop") for outcome in outcomes], dtype=np.bool_)
        ttft = _column([outcome.first for outcome in outcomes]) - arrived
        e2e = np.where(finished, _column([outcome.ended for outcome in outcomes]) - arrived, np.nan)
        # A comparison with NaN is false: without a deadline nothing is late.
        late = ttft > _column([outcome.ttft_deadline for outcome in outcomes])
        late |= e2e > _column([outcome.deadline for outcome in outcomes])
        return cls(
            ttft=ttft,
            e2e=e2e,
            queued=_column([outcome.queued for outcome in outcomes]),
            gap=_column([outcome.longest_gap for outcome in outcomes]),
            prompt=_column([outcome.prompt_tokens for outcome in outcomes]),
            cached=_column([outcome.cached_tokens for outcome in outcomes]),
            output=_column([outcome.output_tokens for outcome in outcomes]),
            started=~np.isnan(ttft),
            finished=finished,
            good=finished & ~late,
        )

    def at(self, rows: npt.NDArray[np.intp]) -> Requests:
        """These rows only."""
        return Requests(*(getattr(self, column.name)[rows] for column in fields(self)))


def _column(values: Sequence[float | None]) -> FloatArray:
    """Floats, with NaN for None."""
    return np.array(values, dtype=np.float64)


def ratio(part: float, whole: float) -> float | None:
    """part / whole; None where there is no whole."""
    return float(part / whole) if whole else None


def percentiles(values: FloatArray) -> Numbers:
    """p50 to p99 (linear between neighbours) and mean of the values that are there (not NaN)."""
    known = values[~np.isnan(values)]
    if not known.size:
        return dict.fromkeys(_names())
    found = [float(value) for value in np.percentile(known, PERCENTILES)]
    return dict(zip(_names(), [*found, float(known.mean())], strict=True))


def _names() -> list[str]:
    return [f"p{percent}" for percent in PERCENTILES] + ["mean"]


def histogram_numbers(edges: FloatArray, counts: npt.NDArray[np.int64]) -> Numbers:
    """The same of a histogram, as if values lay evenly within each bin."""
    total = int(counts.sum())
    if not total:
        return dict.fromkeys(_names())
    below = np.concatenate(([0], np.cumsum(counts)))
    ranks = np.array(PERCENTILES) / 100 * total
    bins = np.searchsorted(below, ranks, side="left") - 1
    found = edges[bins] + np.diff(edges)[bins] * (ranks - below[bins]) / counts[bins]
    mean = float((counts * (edges[:-1] + edges[1:]) / 2).sum() / total)
    return dict(zip(_names(), [*(float(value) for value in found), mean], strict=True))


def _finishes(outcomes: Sequence[Outcome]) -> dict[str, int]:
    return dict.fromkeys(FINISHES, 0) | Counter(outcome.finish for outcome in outcomes)


def _latency(requests: Requests) -> dict[str, Numbers]:
    return {
        "ttft": percentiles(requests.ttft),
        "e2e": percentiles(requests.e2e),
        "queue": percentiles(requests.queued[requests.started]),
        "longest_gap": percentiles(requests.gap[requests.gap > 0]),
    }


def _rates(run: Run, requests: Requests) -> dict[str, Any]:
    """Throughput, goodput, and the share of prompt tokens that the prefix cache spared computing."""
    good = float(requests.good.sum())
    prompt, cached = requests.prompt[requests.started], requests.cached[requests.started]
    return {
        "throughput": {
            "output_tokens_per_second": ratio(float(requests.output.sum()), run.seconds),
            "prompt_tokens_per_second": ratio(float(prompt.sum()), run.seconds),
            "requests_per_second": ratio(float(requests.finished.sum()), run.seconds),
        },
        "goodput": {"share": ratio(good, requests.good.size), "requests_per_second": ratio(good, run.seconds)},
        "prefix_hit_rate": ratio(float(cached.sum()), float(prompt.sum())),
    }


def _cost(run: Run, output: float) -> Numbers:
    per_million = None if run.dollars is None else ratio(run.dollars * 1e6, output)
    return {
        "node_hours": run.node_hours,
        "dollars": run.dollars,
        "dollars_per_million_output_tokens": per_million,
    }


def interval_seconds(series: Series, seconds: float) -> FloatArray:
    """How long each interval lasted: the run may end inside its last one."""
    begin = np.arange(series.nodes.size) * series.seconds
    return np.clip(seconds - begin, 0.0, series.seconds)


def _fleet(series: Series, seconds: float) -> dict[str, Any]:
    """Devices, memory and queue over time. Means weigh intervals by their length."""
    lasted = interval_seconds(series, seconds)
    total = float(lasted.sum())
    held = np.divide(series.kv_used, series.kv_total, out=np.zeros(series.kv_used.shape), where=series.kv_total > 0)
    return {
        "utilisation": ratio(float(series.busy.sum()), float((series.nodes * lasted).sum())),
        "kv": {
            "mean": ratio(float((series.kv_used * lasted).sum()), float((series.kv_total * lasted).sum())),
            "peak": float(held.max()) if held.size else None,
        },
        "queue": {
            "mean": ratio(float((series.waiting * lasted).sum()), total),
            "peak": float(series.waiting.max()) if series.waiting.size else None,
        },
        "nodes": {
            "mean": ratio(float((series.nodes * lasted).sum()), total),
            "peak": float(series.nodes.max()) if series.nodes.size else None,
        },
    }


def fairness(service: Mapping[str, float]) -> Numbers:
    """How evenly tenants were served, each one's tokens divided by its weight.

    `jain` is Jain's index (Jain, Chiu and Hawe, 1984): 1 when all got the same, 1/n when one of n got everything.
    `service_gap` is the largest difference between two tenants, the measure that VTC bounds (Sheng et al., OSDI 2024); there it is
    taken between tenants with work waiting, here between all over the whole run, so uneven demand shows too.
    """
    got = np.array(list(service.values()), dtype=np.float64)
    if not got.any():
        return {"jain": None, "service_gap": None if not got.size else 0.0}
    got_share = got / got.max()
    jain = float(got_share.sum() ** 2 / (got.size * (got_share**2).sum()))
    return {"jain": jain, "service_gap": float(got.max() - got.min())}


def _group(requests: Requests) -> dict[str, Any]:
    """The numbers of one tenant or one priority."""
    total = int(requests.good.size)
    return {
        "requests": total,
        "finished": int(requests.finished.sum()),
        "output_tokens": int(requests.output.sum()),
        "goodput": ratio(float(requests.good.sum()), total),
        "ttft": percentiles(requests.ttft),
        "e2e": percentiles(requests.e2e),
    }


def _rows_by(labels: Sequence[Any]) -> dict[Any, npt.NDArray[np.intp]]:
    """Which rows carry each label, labels in order."""
    names = sorted(set(labels))
    number = {name: index for index, name in enumerate(names)}
    codes = np.array([number[label] for label in labels], dtype=np.intp)
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    return {name: order[bounds[index] : bounds[index + 1]] for name, index in number.items()}


def _tenants(run: Run, requests: Requests) -> dict[str, Any]:
    rows = _rows_by([outcome.tenant for outcome in run.outcomes])
    nobody = np.array([], dtype=np.intp)
    return {
        tenant: _group(requests.at(rows.get(tenant, nobody))) | {"service": run.service.get(tenant)}
        for tenant in sorted({*rows, *run.service})
    }


def _priorities(run: Run, requests: Requests) -> dict[str, Any]:
    """Keys are the priorities as text, for JSON; highest first."""
    rows = _rows_by([outcome.priority for outcome in run.outcomes])
    return {str(priority): _group(requests.at(rows[priority])) for priority in sorted(rows, reverse=True)}
