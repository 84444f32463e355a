"""A request below the gateway: token ids and numbers, never text.

`Continuation` is everything needed to run or to go on running a completion anywhere; `Qos` is the one object that says how
urgent it is, from socket to iteration.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

BLOCK_TOKENS: Final = 16
"""Tokens per KV block, everywhere."""

PRIORITY_CLASSES: Final = {"realtime": 100, "standard": 0, "batch": -100}
"""Named priorities. Higher is more important."""


class FinishReason(enum.StrEnum):
    """Why a completion ended; `ABORT` is never shown to a client."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen, and when to stop. Everything here is a number, so it can cross any wire.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 and `min_p` 0 are off. `logprobs` is the number of alternatives to
    report beside each sampled token (0: the token's own only, None: none); `prompt_logprobs` likewise for the prompt.
    `stop_token_ids` end the completion and are part of `emitted`; `min_tokens` forbids every stop before that many tokens.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    @property
    def penalised(self) -> bool:
        """Whether the choice depends on which tokens came before."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """What is known of one completion: `prompt`, how to choose, the noise's key, and the tokens `emitted` so far.

    Two engines of equal `numerics_id` given the same continuation emit the same remaining tokens. `seed` is an unsigned
    64-bit integer; `choice` is the index among the request's `n`. `params.max_tokens` counts `emitted` too.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    choice: int = 0
    emitted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Qos:
    """Urgency and rights of a request. Deadlines are absolute seconds of the holder's monotonic clock (None: no deadline)."""

    tenant: str = ""
    priority: int = 0
    weight: float = 1.0
    ttft_deadline: float | None = None
    deadline: float | None = None
    residency: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One completion to compute. `id` is unique per choice; `attempt` grows with each re-dispatch, and nodes obey the highest.

    `cache_salt` separates tenants' prefix caches. `isolated` asks that nothing else runs beside it (it was present when
    workers died). `adapter` names a LoRA adapter; empty is the base model.
    """

    id: str
    model: str
    continuation: Continuation
    qos: Qos = Qos()
    attempt: int = 0
    arrival: float = 0.0
    cache_salt: str = ""
    adapter: str = ""
    isolated: bool = False
