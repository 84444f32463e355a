"""Who goes first, and who makes room: the order of requests inside one instance.

One key sorts running and waiting requests alike. Deadline slack and fair shares are other keys behind the same protocol;
those that change with time say so. Knows nothing of blocks or slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol, TypeVar

from inference_stack.core.request import Request

Key = tuple[float, ...]


class Ranked(Protocol):
    """Something with a place in the order, and what it would cost to compute again."""

    @property
    def request(self) -> Request: ...

    @property
    def rank(self) -> tuple[Key, int]: ...

    @property
    def recompute_tokens(self) -> int: ...


R = TypeVar("R", bound=Ranked)


class OrderingPolicy(Protocol):
    """The order of requests. Smaller keys go first."""

    static: bool
    """Keys never change while a request lives: they are computed once."""

    def key(self, request: Request, now: float) -> Key:
        """The request's place."""
        ...

    def displaces(self, request: Request, other: Request) -> bool:
        """Whether a waiting `request` may take memory or a slot from a running `other`. If not from the last in order, then
        from nobody."""
        ...

    def victim(self, candidates: Iterable[R]) -> R | None:
        """Whom to preempt; candidates all rank after the one that needs room, so the first in order always progresses."""
        ...


class PriorityFcfs:
    """Higher priority first, then first come, first served. The victim has the lowest priority, came latest, costs least."""

    static = True

    def key(self, request: Request, now: float) -> Key:
        return (-request.qos.priority, request.arrival)

    def displaces(self, request: Request, other: Request) -> bool:
        return request.qos.priority > other.qos.priority

    def victim(self, candidates: Iterable[R]) -> R | None:
        return max(
            candidates, key=lambda c: (-c.request.qos.priority, c.request.arrival, -c.recompute_tokens), default=None
        )


class Fcfs:
    """First come, first served, whatever the priority. The victim came latest, and costs least."""

    static = True

    def key(self, request: Request, now: float) -> Key:
        return (request.arrival,)

    def displaces(self, request: Request, other: Request) -> bool:
        return False

    def victim(self, candidates: Iterable[R]) -> R | None:
        return max(candidates, key=lambda c: (c.request.arrival, -c.recompute_tokens), default=None)


ORDERINGS: Final[dict[str, Callable[[], OrderingPolicy]]] = {"priority": PriorityFcfs, "fcfs": Fcfs}
"""The policies by name."""
