"""Azure LLM inference traces, 2023: CSV with TIMESTAMP, ContextTokens and GeneratedTokens.

Published in the Azure Public Dataset with the Splitwise paper (Patel et al., ISCA 2024). Prompts' contents are not recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from inference_stack.simulator.workloads.rows import Place, Row, columns, count

_SECOND = len("2023-11-16 18:15:46")


def azure_rows(path: Path) -> Iterator[Row]:
    """The rows, timed from the first one's second. Raises `InferenceError` naming file and line of a bad one."""
    origin: datetime | None = None
    for place, (stamp, context, generated) in columns(path, ("TIMESTAMP", "ContextTokens", "GeneratedTokens")):
        second, fraction = _moment(place, stamp)
        origin = origin or second
        at = (second - origin).total_seconds() + fraction
        yield Row(place.line, at, count(place, "ContextTokens", context), count(place, "GeneratedTokens", generated))


def _moment(place: Place, stamp: str) -> tuple[datetime, float]:
    """The whole second, and the rest: seven digits are more than a datetime holds."""
    head, point, digits = stamp[:_SECOND], stamp[_SECOND : _SECOND + 1], stamp[_SECOND + 1 :]
    try:
        second = datetime.fromisoformat(head)
    except ValueError:
        second = None
    if second is None or (point and not (point == "." and digits.isascii() and digits.isdigit())):
        raise place.problem(f"TIMESTAMP: expected a time such as 2023-11-16 18:15:46.6805900, not {stamp!r}")
    return second, int(digits) / 10 ** len(digits) if point else 0.0
