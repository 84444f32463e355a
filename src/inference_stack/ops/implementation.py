"""One registered way to run one op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.ops.facade import Recorder
from inference_stack.ops.workspace import Workspace

TRANSPOSED_KEYS: Final = "transposed keys"
"""A unit has, per KV head, keys [head_dim][16 tokens], transposed so that a vector of 16 scores needs no shuffling, then values
[16 tokens][head_dim]. With int8 follow the tokens' scales, fp16 [16] of the keys and fp16 [16] of the values."""
TOKEN_ROWS: Final = "token rows"
"""A unit has, per KV head, [16 tokens][key, value]: what one token keeps for one head is 2 · head_dim neighbours. With int8 follow
the tokens' scales as above."""


class UnsuitableWeight(ValueError):
    """A weight that an implementation taken by name cannot hold, or multiplies wrongly; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """One way to run one op. `speed` orders those that can run (higher first); `refuses` gives the reason it cannot, or None.

    `recorder` is what can record steps made of this and the other ops that name the same one; `graphs` says that the device can
    record them itself, since what is launched follows from shapes alone where `StepInputs` has no host integers. `numerics`
    names what decides the result's bits when neither torch nor the processor has a part in it. What reads or writes KV memory
    says in `kv_layout` how a unit is laid out there, and in `kv_dtypes` which numbers it handles, as `KvGroupSpec` calls them;
    `refuses_group` gives the reason it cannot serve layers of some shape, which are known when a model is, or None. With
    `by_name` it is taken only where the configuration names it, and is not asked anything otherwise.
    """

    op: str
    name: str
    speed: int
    refuses: Callable[[torch.device], str | None]
    build: Callable[[Workspace], Callable[..., Any]]
    recorder: Recorder | None = None
    numerics: str = ""
    graphs: bool = False
    kv_layout: str = ""
    kv_dtypes: frozenset[str] = frozenset()
    refuses_group: Callable[[KvGroupSpec], str | None] | None = None
    by_name: bool = False
