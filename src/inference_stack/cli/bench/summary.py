"""From outcomes to numbers: percentiles, throughput, errors by kind, goodput. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from inference_stack.cli.bench.spec import Outcome
from inference_stack.core.errors import invalid

PERCENTILES = (50, 90, 95, 99)
SLOS = ("ttft", "tpot", "e2e")


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The percentile of sorted values, linear between ranks."""
    rank = (len(ordered) - 1) * percent / 100
    low = math.floor(rank)
    high = math.ceil(rank)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def spread(seconds: Iterable[float]) -> dict[str, float] | None:
    """Mean, percentiles and maximum in milliseconds; None of nothing."""
    ordered = sorted(1000 * value for value in seconds)
    if not ordered:
        return None
    points = {f"p{percent}": percentile(ordered, percent) for percent in PERCENTILES}
    return {"mean": math.fsum(ordered) / len(ordered), **points, "max": ordered[-1]}


def parse_slos(text: str) -> dict[str, float]:
    """`ttft:500,tpot:50` in milliseconds, as seconds by name. Raises `InferenceError`."""
    slos = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition(":")
        try:
            slos[name.strip()] = float(value) / 1000
        except ValueError:
            raise invalid(f"{part!r} is not an objective such as ttft:500 (milliseconds)", param="slo") from None
        if name.strip() not in SLOS:
            raise invalid(f"there is no objective {name.strip()!r}; known are {', '.join(SLOS)}", param="slo")
    return slos


def keeps(outcome: Outcome, slos: dict[str, float]) -> bool:
    """Whether a good outcome is within all objectives."""
    measured = {
        "ttft": outcome.ttft,
        "e2e": outcome.latency,
        "tpot": outcome.tpot if outcome.output_tokens > 1 else 0.0,
    }
    return all(measured[name] <= limit for name, limit in slos.items())


def summarise(outcomes: Sequence[Outcome], slos: dict[str, float]) -> dict[str, Any]:
    """The numbers of a run. Duration is from the first arrival to the last end; failed requests count in it, not in latencies."""
    good = [outcome for outcome in outcomes if not outcome.error]
    begin = min((outcome.begin for outcome in outcomes), default=0.0)
    duration = max((outcome.end for outcome in outcomes), default=0.0) - begin
    prompt, output = sum(o.prompt_tokens for o in good), sum(o.output_tokens for o in good)
    per_second = 1 / duration if duration > 0 else 0.0
    result: dict[str, Any] = {
        "completed": len(good),
        "errors": dict(Counter(outcome.error for outcome in outcomes if outcome.error)),
        "duration_s": duration,
        "prompt_tokens": prompt,
        "cached_tokens": sum(o.cached_tokens for o in good),
        "output_tokens": output,
        "requests_per_s": len(good) * per_second,
        "output_tokens_per_s": output * per_second,
        "total_tokens_per_s": (prompt + output) * per_second,
        "ttft_ms": spread(o.ttft for o in good),
        "tpot_ms": spread(o.tpot for o in good if o.output_tokens > 1),
        "itl_ms": spread(gap for o in good for gap in o.gaps),
        "e2e_ms": spread(o.latency for o in good),
    }
    if slos:
        result["goodput_per_s"] = sum(keeps(outcome, slos) for outcome in good) * per_second
    return result
