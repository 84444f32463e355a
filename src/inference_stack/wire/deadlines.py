"""Deadlines cross processes as seconds from now: clock readings mean nothing on another machine."""

from __future__ import annotations

from dataclasses import replace

from inference_stack.core.request import Qos, Request


def _moved(deadline: float | None, offset: float) -> float | None:
    return None if deadline is None else deadline + offset


def _shift(qos: Qos, offset: float) -> Qos:
    if qos.deadline is None and qos.ttft_deadline is None:
        return qos
    return replace(qos, deadline=_moved(qos.deadline, offset), ttft_deadline=_moved(qos.ttft_deadline, offset))


def departing(request: Request, now: float) -> Request:
    """The request as it is sent: deadlines relative to `now`, the sender's monotonic clock."""
    return replace(request, qos=_shift(request.qos, -now), arrival=now - request.arrival)


def arrived(request: Request, now: float) -> Request:
    """The request as it is received: deadlines on the receiver's clock. `arrival` becomes when it entered the system."""
    return replace(request, qos=_shift(request.qos, now), arrival=now - request.arrival)
