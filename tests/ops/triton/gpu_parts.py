"""Attention ops as GPUs run them, interpreted: small ones for tests, and steps in the form in which graphs record them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inference_stack.ops.api import GroupTable, HeadSpec, StepInputs
from inference_stack.ops.triton.attention import Attention
from inference_stack.ops.triton.rope_store import RopeStore
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace
from tests.ops.parts import rope_table


@dataclass
class GpuOps:
    """`rope_store` and `attend`, as `BoundOps` has them."""

    deterministic: bool = False

    def __post_init__(self) -> None:
        workspace = Workspace(max_tokens=2048, max_samples=64)
        settings = TritonSettings(dtype=torch.float32, deterministic=self.deterministic)
        self.rope_store = RopeStore(workspace, settings)
        self.attend = Attention(workspace, settings)


def heads_of(q_heads: int, kv_heads: int, head_dim: int = 16, norms: str = "") -> HeadSpec:
    weight = torch.linspace(0.5, 1.5, head_dim)
    return HeadSpec(
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope=rope_table(1200, head_dim),
        q_norm_E=weight if "q" in norms else None,
        k_norm_E=weight + 0.25 if "k" in norms else None,
    )


def projection(heads: HeadSpec, tokens: int, seed: int = 0) -> Tensor:
    width = (heads.q_heads + 2 * heads.kv_heads) * heads.head_dim
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed)) * 2


def recorded_form(step: StepInputs, padding: int, parked: int) -> StepInputs:
    """A decode step as a graph records it: no host integers, and rows that only fill it up."""
    rows = len(step.context_R) + padding

    def padded(column: Tensor, value: int = 0) -> Tensor:
        return torch.cat([column, torch.full((padding, *column.shape[1:]), value)])

    table = step.tables[0]
    wide = torch.nn.functional.pad(table.entry_RB, (0, 3))
    return replace(
        step,
        tokens_T=padded(step.tokens_T),
        positions_T=padded(step.positions_T),
        row_T=torch.arange(rows),
        context_R=padded(step.context_R),
        cu_q_X=torch.arange(rows + 1),
        cu_q=(),
        context=(),
        tables=(
            GroupTable(entry_RB=padded(wide), entry_T=padded(table.entry_T, parked), offset_T=padded(table.offset_T)),
        ),
    )
