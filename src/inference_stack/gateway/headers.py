"""What the headers of a request say: its id, and how urgent it is.

`x-tenant` and other statements about rights are not believed here: there are no keys yet to vouch for them.
"""

from __future__ import annotations

import re
import secrets
from typing import Final

from starlette.datastructures import Headers

from inference_stack.core.errors import invalid
from inference_stack.core.request import PRIORITY_CLASSES, Qos

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
DAY_MS: Final = 86_400_000.0
PRIORITY_LIMIT: Final = 100
"""Priorities clients may ask for lie in -100 … 100."""


def request_id(headers: Headers) -> str:
    """The client's `x-request-id` if it is one that can be logged and echoed, else a new one."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"


def qos(headers: Headers, priority: int | str | None, arrival: float) -> Qos:
    """Urgency from the headers, then the body's `priority`. Raises `InferenceError` (400).

    `arrival` is the receipt on the holder's monotonic clock, in seconds; deadlines count from it.
    """
    return Qos(
        priority=_priority(headers.get("x-priority"), priority),
        ttft_deadline=_deadline(headers, "x-ttft-deadline-ms", arrival),
        deadline=_deadline(headers, "x-deadline-ms", arrival),
    )


def _priority(header: str | None, body: int | str | None) -> int:
    """The header wins: it is set nearer to the operator."""
    if header is None:
        return PRIORITY_CLASSES[body] if isinstance(body, str) else body or 0
    if header in PRIORITY_CLASSES:
        return PRIORITY_CLASSES[header]
    if re.fullmatch(r"-?\d{1,3}", header) and abs(int(header)) <= PRIORITY_LIMIT:
        return int(header)
    names = ", ".join(PRIORITY_CLASSES)
    message = (
        f"Invalid header 'x-priority': expected one of {names}, or an integer from -100 to 100 (higher is sooner)."
    )
    raise invalid(message, param="x-priority", code="invalid_value")


def _deadline(headers: Headers, name: str, arrival: float) -> float | None:
    value = headers.get(name)
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d{1,6})?", value) and 0 < float(value) <= DAY_MS:
        return arrival + float(value) / 1000
    message = f"Invalid header '{name}': expected milliseconds above 0 and at most {DAY_MS:.0f}."
    raise invalid(message, param=name, code="invalid_value")
