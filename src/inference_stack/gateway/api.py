"""What the HTTP handlers need from the dispatcher, and nothing more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from inference_stack.core.fleet import ModelInfo, NodeState
from inference_stack.core.request import Request
from inference_stack.core.step import TokenDelta

Sink = Callable[[TokenDelta], None]
"""Called with a completion's news, in order; the last has `finish` set. Errors arrive as a last delta with `FinishReason.ERROR`.
It must not raise."""


class Ticket(Protocol):
    """One dispatched completion, whatever happens to workers and nodes underneath."""

    @property
    def hint(self) -> bytes:
        """Four bytes that point at the node which computes it; empty while none does."""
        ...

    def abort(self) -> None:
        """Stop the request in the engine. Idempotent, and harmless after the end."""
        ...


class Dispatch(Protocol):
    """Runs requests on whatever nodes there are."""

    @property
    def news_at(self) -> float:
        """When an engine emitted what sinks are being told now, in Unix seconds; 0 while that is not known."""
        ...

    def models(self) -> dict[str, ModelInfo]:
        """Models that are served, by name; empty until one is ready."""
        ...

    def nodes(self) -> tuple[NodeState, ...]:
        """The nodes' last known states."""
        ...

    def admit(self, model: str, completions: int) -> None:
        """Refuse early: raises `InferenceError` (404, 429 with Retry-After, 503) when `completions` more requests of `model`
        cannot be accepted now."""
        ...

    def submit(self, request: Request, sink: Sink, holder: bytes = b"", numerics: str = "") -> Ticket:
        """Accept a request. It runs, or waits, until it ends or is aborted. `holder` hints at a node that may hold it already,
        `numerics` is the `numerics_id` that computed what its client has."""
        ...
