"""Before its first use on a card, the package's attention against the reference on small steps: who disagrees is not used.

Steps have rows of every kind, in scattered blocks of an arena of our layout; memory that no query may see is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.ops.api import GroupTable, KvLayer, StepInputs
from inference_stack.ops.fa3.attention import Fa3Attention
from inference_stack.ops.fa3.pages import pages
from inference_stack.ops.fa3.wheel import DTYPES, Attend
from inference_stack.ops.reference.attention import Attention
from inference_stack.ops.workspace import Workspace

Rows = Sequence[tuple[int, int]]

MIXED: Final[Rows] = ((37, 1), (25, 25), (75, 5), (300, 40), (16, 1))
"""Tokens known and queries among them: decode, a prompt, a verified draft, a chunk, a full block."""
DECODE: Final[Rows] = ((1, 1), (140, 1), (33, 1), (301, 1))
KV_HEADS: Final = 2
GROUP: Final = 4
WINDOW: Final = 21
BOUND: Final = 1e-2
"""Largest error relative to the largest result; both round softmax weights and results to 16 bits."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of attention, in both kinds of step."""

    head_dim: int
    windowed: bool
    sinks: bool

    def __str__(self) -> str:
        return f"heads of {self.head_dim}{', a window' * self.windowed}{', sinks' * self.sinks}"


def disagreement(
    run: Attend, device: torch.device, dtype: torch.dtype, head_dims: Sequence[int], *, windowed: bool
) -> str | None:
    """Why the function is not to be trusted with heads of these sizes, or None."""
    for case in (Case(width, windowed, sinks) for width in head_dims for sinks in (False, True)):
        for rows in (MIXED, DECODE):
            try:
                error = _error(run, device, dtype, case, rows)
            except (RuntimeError, ValueError, TypeError, AssertionError) as failure:
                return f"its self-check failed with {case}: {type(failure).__name__}: {failure}"
            if not error <= BOUND:
                step = "a mixed step" if rows is MIXED else "a decode step"
                return f"it differs from the reference with {case}, {step}: by {error:.3g}, where {BOUND:g} is allowed"
    return None


def _error(run: Attend, device: torch.device, dtype: torch.dtype, case: Case, rows: Rows) -> float:
    draw = torch.Generator().manual_seed(case.head_dim + case.windowed)
    heads, tokens = KV_HEADS * GROUP, sum(queries for _, queries in rows)
    q_THE = torch.randn(tokens, heads, case.head_dim, generator=draw).to(device, dtype)
    sinks_H = torch.linspace(-2, 3, heads).bfloat16().float().to(device) if case.sinks else None
    entries = _entries(rows, draw)
    ours, plain = (_layer(case, dtype, device, int(entries.max()) + 1, fill) for fill in (0xFF, 0))
    _store(ours, plain, rows, entries.to(device), draw)
    step = _step(rows, entries.to(device), ours)
    asked = replace(step, cu_q=(), context=()) if rows is DECODE else step
    scale = case.head_dim**-0.5
    found_TX = Fa3Attention(run)(q_THE, ours, asked, scale, sinks_H=sinks_H).float()
    reference = Attention(Workspace(max_tokens=tokens, max_samples=1, device=device, planned=False))
    wanted_TX = reference(q_THE.float(), plain, step, scale, sinks_H=sinks_H)
    return ((found_TX - wanted_TX).abs().max() / wanted_TX.abs().max()).item()


def _entries(rows: Rows, draw: torch.Generator) -> Tensor:
    """Scattered blocks [R, B] of all rows, int64; 0, which is nobody's, where a row has no more."""
    counts = [-(-context // BLOCK_TOKENS) for context, _ in rows]
    order = torch.randperm(sum(counts), generator=draw) + 1
    entry_RB = torch.zeros(len(rows), max(counts), dtype=torch.int64)
    for row, (count, taken) in enumerate(zip(counts, order.split(counts), strict=True)):
        entry_RB[row, :count] = taken
    return entry_RB


def _layer(case: Case, dtype: torch.dtype, device: torch.device, blocks: int, fill: int) -> KvLayer:
    """The second of two layers, in memory of these bytes: 0xFF is NaN."""
    unit = KvGroupSpec(
        name="check", layers=(0,), kv_heads=KV_HEADS, head_dim=case.head_dim, dtype=DTYPES[dtype]
    ).unit_bytes
    return KvLayer(
        arena=torch.full((2 * unit * blocks,), fill, dtype=torch.uint8, device=device),
        group=0,
        offset_bytes=unit * blocks,
        granule_bytes=unit,
        unit_bytes=unit,
        kv_heads=KV_HEADS,
        head_dim=case.head_dim,
        dtype=dtype,
        window=WINDOW if case.windowed else None,
    )


def _store(ours: KvLayer, plain: KvLayer, rows: Rows, entry_RB: Tensor, draw: torch.Generator) -> None:
    """The same keys and values of all tokens that a query may see, in both layouts."""
    for (context, queries), entry_B in zip(rows, entry_RB, strict=True):
        first = 0 if ours.window is None else max(0, context - queries - ours.window + 1)
        position_P = torch.arange(first, context, device=entry_B.device)
        entry_P, offset_P = entry_B[position_P // BLOCK_TOKENS], position_P % BLOCK_TOKENS
        for into, like in zip(pages(ours), _transposed(plain), strict=True):
            numbers = torch.randn(context - first, KV_HEADS, ours.head_dim, generator=draw).to(into)
            into[entry_P, offset_P] = like[entry_P, offset_P] = numbers


def _transposed(kv: KvLayer) -> tuple[Tensor, Tensor]:
    """Keys and values [blocks, 16, G, E] as the reference lays them out."""
    width, size = kv.head_dim, kv.dtype.itemsize
    unit, head, first = kv.unit_bytes // size, kv.unit_bytes // kv.kv_heads // size, kv.offset_bytes // size
    shape = (kv.arena.numel() // kv.unit_bytes - first // unit, BLOCK_TOKENS, kv.kv_heads, width)
    numbers = kv.arena.view(kv.dtype)
    keys = numbers.as_strided(shape, (unit, 1, head, BLOCK_TOKENS), first)
    return keys, numbers.as_strided(shape, (unit, width, head, 1), first + BLOCK_TOKENS * width)


def _step(rows: Rows, entry_RB: Tensor, kv: KvLayer) -> StepInputs:
    device = entry_RB.device
    bounds = torch.tensor([0, *(queries for _, queries in rows)]).cumsum(0)
    context_R = torch.tensor([context for context, _ in rows])
    none_T = torch.zeros(int(bounds[-1]), dtype=torch.int64, device=device)
    return StepInputs(
        tokens_T=none_T,
        positions_T=none_T,
        row_T=none_T,
        context_R=context_R.to(device),
        cu_q_X=bounds.to(device),
        cu_q=tuple(bounds.tolist()),
        context=tuple(context_R.tolist()),
        kv=(kv,),
        tables=(GroupTable(entry_RB=entry_RB, entry_T=none_T, offset_T=none_T),),
        sampled_S=none_T[:0],
    )
