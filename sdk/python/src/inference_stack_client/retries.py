"""Which answers are worth another attempt, and how long to wait before it."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from email.utils import mktime_tz, parsedate_tz

FIRST_SECONDS, LONGEST_SECONDS = 0.5, 8.0
BELIEVED_SECONDS = 60.0
"""A server's wish to wait longer than this is not obeyed; the next attempt comes after our own pause."""


def worth_retrying(status: int, headers: Mapping[str, str]) -> bool:
    """Whether the same request may succeed later. The server's own word on it counts most."""
    said = headers.get("x-should-retry")
    if said in ("true", "false"):
        return said == "true"
    return status in (408, 409, 429) or status >= 500


def pause(attempt: int, headers: Mapping[str, str] | None = None) -> float:
    """Seconds until the next attempt: as the server asks, else doubling from half a second to eight, a quarter of it random."""
    asked = _asked(headers or {})
    if asked is not None and 0 < asked <= BELIEVED_SECONDS:
        return asked
    longest = min(FIRST_SECONDS * 2.0**attempt, LONGEST_SECONDS)
    return longest * random.uniform(0.75, 1.0)


def _asked(headers: Mapping[str, str]) -> float | None:
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            return float(headers[name]) / scale
        except (KeyError, ValueError):
            continue
    date = parsedate_tz(headers.get("retry-after", ""))
    return None if date is None else mktime_tz(date) - time.time()
