"""Which of a node's workers computes a request: the one that is predicted to emit its first token soonest.

    predicted wait = the prompt tokens ahead of it and its own, in that worker's steps, beside what already decodes there;
                     behind full places also the time until one is free

The level below `routing`: a handful of workers, known exactly, with plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from inference_stack.core.stats import StepTimeModel

UNTIMED_TOKEN_SECONDS: Final = 1e-4
"""A guess for workers whose speed is not known yet: only that it is the same for all of them matters."""
TYPICAL_OUTPUT_TOKENS: Final = 64
"""How long a running completion is assumed to go on, where one waits for its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A worker as one model's requests find it: its speed, prompt tokens of a step, places, and what is there already.

    `rows` are requests, `prompt` their prompt tokens still to compute, `context` the tokens of those that decode.
    """

    speed: StepTimeModel
    chunk: int
    places: int
    rows: int
    prompt: int
    context: int


def predicted_wait(load: Load, prompt_tokens: int) -> float:
    """Seconds until a prompt of this many tokens would have its first token."""
    speed, rows = load.speed, min(load.rows, load.places)
    per_token = speed.per_token or UNTIMED_TOKEN_SECONDS
    step = speed.base + (speed.per_row + per_token) * rows + speed.per_context * load.context
    tokens = load.prompt + prompt_tokens
    behind = max(0, load.rows + 1 - load.places)
    queue = behind / max(1, load.places) * TYPICAL_OUTPUT_TOKENS * step
    return tokens * per_token + math.ceil(tokens / load.chunk) * step + queue


def least_wait(loads: Sequence[Load], prompt_tokens: int) -> int:
    """The index of the worker with the least predicted wait, the first of equal ones. Raises `ValueError` without any."""
    waits = [predicted_wait(load, prompt_tokens) for load in loads]
    return waits.index(min(waits))
