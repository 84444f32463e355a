"""Small runs for the report's tests, with numbers that can be worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from inference_stack.simulator.api import Outcome, Run, Series

HOSTILE = "</title></style><script>alert('1')</script><img src=https://evil.example/x onerror=\"x()\">&amp;"


def outcome(
    number: int, arrived: float, first: float | None = None, ended: float | None = None, **more: Any
) -> Outcome:
    return Outcome(
        **{"tenant": "a", "priority": 0, "prompt_tokens": 100} | more,
        number=number,
        arrived=arrived,
        first=first,
        ended=ended,
    )


def series(**columns: list[float]) -> Series:
    """Two intervals of ten seconds, nothing happening but for what is given."""
    names = ("running", "waiting", "kv_used", "kv_total", "busy", "tokens", "prompt_tokens", "nodes")
    return Series(seconds=10.0, **{name: np.array(columns.get(name, [0.0, 0.0])) for name in names})


def run(outcomes: list[Outcome], **more: Any) -> Run:
    """Fifteen seconds: the second interval lasted five."""
    given: dict[str, Any] = {
        "config": {},
        "seconds": 15.0,
        "series": series(),
        "itl_edges": np.array([0.0, 1.0, 2.0, 4.0]),
        "itl_counts": np.zeros(3, np.int64),
    }
    return Run(outcomes=outcomes, **given | more)


def empty() -> Run:
    nothing = Series(seconds=10.0, **dict.fromkeys(("running", "waiting", "kv_used", "kv_total"), np.array([])),
                     **dict.fromkeys(("busy", "tokens", "prompt_tokens", "nodes"), np.array([])))  # fmt: skip
    return run([], seconds=0.0, series=nothing)


def six_requests() -> Run:
    """In time; late first token; late end; refused; failed after a token; still open."""
    return run(
        [
            outcome(0, 0, 1, 3, finish="length", output_tokens=3, cached_tokens=50, queued=0.5, longest_gap=1.5,
                    ttft_deadline=2.0, deadline=4.0),
            outcome(1, 1, 4, 5, finish="length", output_tokens=2, queued=2.5, longest_gap=1.0, ttft_deadline=2.0),
            outcome(2, 2, 2.5, 12, finish="stop", output_tokens=4, tenant="b", prompt_tokens=200, cached_tokens=150,
                    longest_gap=6.5, deadline=9.0, moves=2, priority=100),
            outcome(3, 3, finish="refused", tenant="b"),
            outcome(4, 5, 6, 7, finish="error", error="worker_lost", output_tokens=1, tenant="b"),
            outcome(5, 9),
        ],
        series=series(busy=[8.0, 4.0], nodes=[2.0, 1.0], kv_used=[50.0, 90.0], kv_total=[200.0, 100.0],
                      waiting=[2.0, 5.0], tokens=[6.0, 3.0], prompt_tokens=[400.0, 200.0]),
        itl_counts=np.array([2, 0, 8]),
        service={"a": 100.0, "b": 300.0},
        preemptions=7,
        node_hours=0.5,
        dollars=9.0,
        steps=40,
        wall_seconds=0.5,
        events=[(4.0, "node 1 is killed"), (12.0, "node 1 is back")],
        config={"fleet": {"nodes": 2, "preset": "l4"}},
    )  # fmt: skip


def hostile() -> Run:
    return run(
        [outcome(0, 0, 1, 3, finish="stop", tenant=HOSTILE), outcome(1, 0, 1, 3, finish="stop", tenant="b")],
        service={HOSTILE: 3.0, "b": 1.0},
        config={HOSTILE: [HOSTILE, {"path": Path("/x"), "rate": math.inf}]},
        events=[(1.0, HOSTILE)],
    )
