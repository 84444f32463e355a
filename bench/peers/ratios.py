"""From every repetition's numbers to medians, quartiles, ratios and whether the targets hold.

A ratio is always ours / theirs, whichever way is better. Pure arithmetic on plain dictionaries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import Any

Row = Mapping[str, float]

RATES = ("decode_tokens_per_s", "tokens_per_s_8", "tokens_per_s_32")
COSTS = ("ttft_ms", "warm_ttft_ms", "pss_mb")

TARGETS: dict[str, dict[str, float]] = {
    "llama.cpp Q4_1": {"decode_tokens_per_s": 1.8, "ttft_ms": 0.33, "tokens_per_s_8": 3.0, "tokens_per_s_32": 3.3},
    "llama.cpp Q4_0": {"decode_tokens_per_s": 1.5, "ttft_ms": 0.6, "tokens_per_s_8": 1.6, "tokens_per_s_32": 1.7},
    "OpenVINO": {"decode_tokens_per_s": 2.7, "ttft_ms": 0.75, "tokens_per_s_8": 1.6, "tokens_per_s_32": 1.3},
    "fp32": {"decode_tokens_per_s": 6.0, "ttft_ms": 0.65, "tokens_per_s_8": 2.2, "tokens_per_s_32": 1.8},
}
"""Ratios to reach, by family of peer: at least this for rates, at most this for costs."""

OWN_TARGETS = {"warm_ttft_ms": 50.0, "pss_mb": 700.0, "ready_s": 3.0}
"""What our server may take at most, whatever others do."""


def holds(metric: str, value: float, bound: float) -> bool:
    """Whether a ratio or an amount is on the right side of its bound."""
    return value >= bound if metric in RATES else value <= bound


def summary(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Median and quartiles of every metric; with one row all three are its value."""
    out = {}
    for metric in rows[0]:
        values = [row[metric] for row in rows]
        low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        out[metric] = {"median": median(values), "lower_quartile": low, "upper_quartile": high}
    return out


def ratios(ours: Sequence[Row], theirs: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Per metric: the ratio of the medians, and the median of the ratios of repetitions that both finished."""
    mine, other = summary(ours), summary(theirs)
    return {
        metric: {
            "of_medians": mine[metric]["median"] / other[metric]["median"],
            "paired_median": median(a[metric] / b[metric] for a, b in zip(ours, theirs, strict=False)),
        }
        for metric in mine
        if metric in other
    }


def peer_targets(family: str, found: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Each target against a peer of this family: its bound, what was reached, and whether it holds."""
    return [
        {
            "metric": metric,
            "bound": bound,
            "ratio": found[metric]["of_medians"],
            "met": holds(metric, found[metric]["of_medians"], bound),
        }
        for metric, bound in TARGETS[family].items()
    ]


def own_targets(amounts: Row) -> list[dict[str, Any]]:
    """Each target of our own: the amount allowed, the amount found, and whether it holds."""
    return [
        {"metric": metric, "bound": bound, "amount": amounts[metric], "met": holds(metric, amounts[metric], bound)}
        for metric, bound in OWN_TARGETS.items()
    ]
