"""Deadlines cross processes as seconds from now: clock readings mean nothing on another machine."""

from __future__ import annotations

from dataclasses import replace

from inference_stack.core.request import Qos, Request


def _shift(qos: Qos, offset: float) -> Qos:
    if qos.deadline is None and qos.ttft_deadline is None:
        return qos
    moved = {
        name: None if value is None else value + offset
        for name, value in (("deadline", qos.deadline), ("ttft_deadline", qos.ttft_deadline))
    }
    return replace(qos, **moved)


def departing(request: Request, now: float) -> Request:
    """The request as it is sent: deadlines relative to `now`, the sender's monotonic clock."""
    return replace(request, qos=_shift(request.qos, -now), arrival=now - request.arrival)


def arrived(request: Request, now: float) -> Request:
    """The request as it is received: deadlines on the receiver's clock. `arrival` becomes when it entered the system."""
    return replace(request, qos=_shift(request.qos, now), arrival=now - request.arrival)
