"""What every handler of one gateway shares: the seams it was given, and whether it is draining.

Passed, never global: two gateways can live in one process.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from inference_stack.config.tree import ServerConfig
from inference_stack.core.errors import model_not_found, unavailable
from inference_stack.core.fleet import ModelInfo
from inference_stack.core.seams import Clock
from inference_stack.frontend.load import Frontend
from inference_stack.gateway.api import Dispatch
from inference_stack.gateway.resume import ResumeTokens
from inference_stack.telemetry.metrics import Metrics


@dataclass(kw_only=True)
class Gateway:
    """One gateway. `frontends` are by model name; `started` is Unix seconds.

    `streams` are those being sent, by their answer's id: what ends one whose client has come back on another connection.
    """

    dispatch: Dispatch
    frontends: Mapping[str, Frontend]
    config: ServerConfig
    clock: Clock
    metrics: Metrics
    log: logging.Logger
    started: int
    resume_tokens: ResumeTokens
    streams: dict[str, Callable[[], None]] = field(default_factory=dict)
    draining: bool = False
    scrape: Callable[[], Awaitable[bytes]] | None = None
    """What `/metrics` says where this process is one of several."""

    def begin_drain(self) -> None:
        """Refuse new requests and say so in `/ready`; what runs goes on."""
        self.draining = True

    def served(self, name: str) -> tuple[ModelInfo, Frontend]:
        """The model of this name. Raises `InferenceError`: 404 where there is none, 503 while it is not ready."""
        if name not in self.frontends:
            raise model_not_found(name if len(name) <= 80 else name[:80] + "…")
        model = self.dispatch.models().get(name)
        if model is None:
            raise unavailable(f"The model `{name}` is not ready.")
        return model, self.frontends[name]

    def refuse_when_draining(self) -> None:
        """Raises `InferenceError` (503) once the drain has begun."""
        if self.draining:
            raise unavailable("The server is shutting down.")
