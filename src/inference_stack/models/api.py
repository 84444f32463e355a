"""What a loaded model is to the engine: KV groups to allocate, a forward pass, logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.ops.api import Experts, Linear, Ops, StepInputs
from inference_stack.ops.facade import EXPERT_OPS, STEP_OPS

Progress = Callable[[str, int, int], None]
"""Called as (what, bytes done, bytes in all) while weights load."""


class Model(Protocol):
    """A causal language model."""

    vocab_size: int
    max_positions: int

    def kv_groups(self, dtype: str) -> tuple[KvGroupSpec, ...]:
        """The KV groups of this architecture, with KV stored in `dtype`. Every model layer is in exactly one."""
        ...

    def forward(self, ops: Ops, step: StepInputs) -> Tensor:
        """Hidden states after the final norm, hidden_TD."""
        ...

    def logits(self, ops: Ops, hidden_SD: Tensor) -> Tensor:
        """logits_SV fp32."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model with its weights. `revision` is a hash of what was loaded, for `numerics_id`; `quantisation` names the weight forms
    (for example "w4g32 from Q4_1"), `weight_bytes` counts all parameters as they are in memory. `eos_tokens` end a completion
    unless told otherwise. `linears` are all projections and tables, each once, and `experts` those of every layer that has some:
    what `Ops.prepare` lays out."""

    model: Model
    architecture: str
    revision: str
    quantisation: str
    weight_bytes: int
    eos_tokens: tuple[int, ...]
    linears: tuple[Linear, ...] = ()
    experts: tuple[Experts, ...] = ()

    @property
    def step_ops(self) -> tuple[str, ...]:
        """The ops that its steps are made of."""
        return STEP_OPS + EXPERT_OPS if self.experts else STEP_OPS
