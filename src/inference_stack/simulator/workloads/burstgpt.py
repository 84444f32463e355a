"""BurstGPT traces: CSV with Timestamp in seconds, Model, Request tokens, Response tokens, Total tokens and Log Type.

Published by Wang et al. (arXiv 2401.17644). A row without response tokens is a request that failed. Contents are not recorded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from inference_stack.simulator.workloads.rows import Place, Row, columns, count

_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def burstgpt_rows(path: Path) -> Iterator[Row]:
    """The rows, failed ones included. Raises `InferenceError` naming file and line of a bad one."""
    for place, (stamp, request, response) in columns(path, _COLUMNS):
        output = count(place, "Response tokens", response, low=0)
        # A request that failed may never have been counted.
        prompt = count(place, "Request tokens", request, low=min(output, 1))
        yield Row(place.line, _seconds(place, stamp), prompt, output)


def _seconds(place: Place, stamp: str) -> float:
    try:
        value = float(stamp)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise place.problem(f"Timestamp: expected seconds, not {stamp!r}")
    return value
