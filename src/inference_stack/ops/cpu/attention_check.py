"""The self-check's part for attention: a step of ragged rows over a small arena, in each KV dtype."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.ops.api import GroupTable, HeadSpec, KvLayer, Rope, StepInputs
from inference_stack.ops.cpu.attention import KV_FORMS, CpuAttention
from inference_stack.ops.cpu.native import Native
from inference_stack.ops.workspace import Workspace

Q_HEADS, KV_HEADS, HEAD_DIM = 6, 2, 24
TOKENS: Final = (270, 1, 20)
"""Stored, of the rows; the first crosses a key tile."""
QUERIES: Final = (10, 1, 20)
"""Attended, of the rows: their last ones."""
WINDOW: Final = 30
SOFTCAP: Final = 4.0


def attention_results(native: Native) -> dict[str, Tensor]:
    """What one kernel set computes and stores: tensors by name, from fixed pseudo-random inputs."""
    generator = torch.Generator().manual_seed(2)
    tokens = sum(TOKENS)
    attention = CpuAttention(native, Workspace(max_tokens=tokens, max_samples=1))
    qkv_TX = torch.randn(tokens, (Q_HEADS + 2 * KV_HEADS) * HEAD_DIM, generator=generator)
    angle = torch.rand(max(TOKENS), HEAD_DIM, generator=generator)
    norm = torch.rand(HEAD_DIM, generator=generator)
    heads = HeadSpec(
        q_heads=Q_HEADS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        rope=Rope(cos_PE=angle, sin_PE=1 - angle),
        q_norm_E=norm,
        k_norm_E=norm,
    )
    found = {}
    bounds = torch.tensor([0, *QUERIES]).cumsum(0)
    for dtype in KV_FORMS:
        kv, step = _step(dtype)
        q_THE = attention.rope_store(qkv_TX, heads, kv, step)
        found[f"rope_store {dtype}"] = kv.arena
        found[f"attend {dtype}"] = attention.attend(
            q_THE[TOKENS[0] - QUERIES[0] :], kv, replace(step, cu_q_X=bounds), HEAD_DIM**-0.5, SOFTCAP
        ).clone()
    return found


def _step(dtype: torch.dtype) -> tuple[KvLayer, StepInputs]:
    """A zeroed arena, and the step that fills it."""
    blocks = [-(-count // BLOCK_TOKENS) for count in TOKENS]
    name, window = str(dtype).removeprefix("torch."), WINDOW if dtype == torch.float16 else None
    unit = KvGroupSpec(name="check", layers=(0,), kv_heads=KV_HEADS, head_dim=HEAD_DIM, dtype=name).unit_bytes
    kv = KvLayer(
        arena=torch.zeros(unit * sum(blocks), dtype=torch.uint8),
        group=0,
        offset_bytes=0,
        granule_bytes=unit,
        unit_bytes=unit,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        dtype=dtype,
        window=window,
    )
    first = torch.tensor([0, *blocks[:-1]]).cumsum(0)
    entry_RB = first[:, None] + torch.arange(max(blocks))
    position_T = torch.cat([torch.arange(count) for count in TOKENS])
    row_T = torch.repeat_interleave(torch.arange(len(TOKENS)), torch.tensor(TOKENS))
    bounds = torch.tensor([0, *TOKENS]).cumsum(0)
    table = GroupTable(
        entry_RB=entry_RB,
        entry_T=entry_RB[row_T, position_T // BLOCK_TOKENS],
        offset_T=position_T % BLOCK_TOKENS,
    )
    return kv, StepInputs(
        tokens_T=position_T,
        positions_T=position_T,
        row_T=row_T,
        context_R=torch.tensor(TOKENS),
        cu_q_X=bounds,
        cu_q=tuple(bounds.tolist()),
        context=TOKENS,
        kv=(kv,),
        tables=(table,),
        sampled_S=position_T[:0],
    )
