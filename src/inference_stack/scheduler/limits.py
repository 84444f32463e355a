"""What one instance may do at once. Plain numbers; how they were derived is not known here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Bounds of one model instance.

    `max_running` is also the number of slots. `max_batch_tokens` bounds the query tokens of a step. `max_model_len` bounds
    prompt plus completion. `eos_tokens` end a completion unless the request ignores them. `itl_target` is in seconds (None:
    off): prompt chunks are kept small enough that a step with decoding streams is predicted to last no longer. `max_drafts`
    is how many tokens a proposer may guess per row and step.
    """

    max_running: int
    max_batch_tokens: int
    max_model_len: int
    eos_tokens: tuple[int, ...] = ()
    itl_target: float | None = None
    max_drafts: int = 0

    def __post_init__(self) -> None:
        if min(self.max_running, self.max_batch_tokens, self.max_model_len) < 1:
            raise ValueError("max_running, max_batch_tokens and max_model_len must be at least 1")
        if self.max_drafts < 0 or (self.itl_target is not None and self.itl_target <= 0.0):
            raise ValueError("max_drafts must not be negative and itl_target must be positive")
