"""Attention of rows with many queries, prompts and their chunks: a program has a tile of queries and walks over all its keys.

    a program: M (query, head) pairs of one row and one KV head     work list [(row, tile)], the longest first

The group's heads lie side by side in a tile, so that keys and values are loaded once for all of them. Tiles up to the first
query's position are visible to all rows and need no mask. Floor: 4 · E operations for each visible (query, head, key), on the
tensor cores; keys and values come from the L2 cache after the first tile. In deterministic mode keys are walked lane by lane, as
decode does. The work list is made on the host, which knows the bounds of rows; it is uploaded once a step.
"""

from __future__ import annotations

from typing import Any

import triton.language as tl
from torch import Tensor

from inference_stack.ops.triton.attention_decode import row_bounds
from inference_stack.ops.triton.attention_shapes import STAGES, Form, Launch, Tile
from inference_stack.ops.triton.attention_tiles import finished, swept
from inference_stack.ops.triton.kernel import kernel_for_any


@kernel_for_any("work", "cu_q", "context", "entries", "first", "entry_stride", "window")
def prefill_kernel(
    q: tl.tensor,
    out: tl.tensor,
    work: tl.tensor,
    arena: tl.tensor,
    entries: tl.tensor,
    cu_q: tl.tensor,
    context: tl.tensor,
    sinks: tl.tensor,
    first: tl.tensor,
    granule: tl.tensor,
    entry_stride: tl.tensor,
    q_stride: tl.tensor,
    window: tl.tensor,
    factor: tl.tensor,
    ceiling: tl.tensor,
    GROUP: tl.constexpr,
    E: tl.constexpr,
    BLOCK_E: tl.constexpr,
    M: tl.constexpr,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
    PIECE: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    KV: tl.constexpr,
    HEAD_BYTES: tl.constexpr,
    KV_HEADS: tl.constexpr,
) -> None:
    """Grid (tiles · KV heads), a tile's heads being neighbours. `work` int32 [tiles, 2]: row, and its tile."""
    item = tl.program_id(0) // KV_HEADS
    group_head = tl.program_id(0) % KV_HEADS
    row = tl.load(work + 2 * item).to(tl.int64)
    first_pair = tl.load(work + 2 * item + 1) * M
    token, queries, length = row_bounds(cu_q, context, row)
    pair = first_pair + tl.arange(0, M)
    e = tl.arange(0, BLOCK_E)
    valid = pair < queries * GROUP
    start = length - queries
    position = tl.where(valid, start + pair // GROUP, -1)
    lowest = start + first_pair // GROUP
    last = tl.minimum(start + (first_pair + M - 1) // GROUP, length - 1)
    low = 0
    if WINDOWED:
        low = tl.maximum(lowest - window + 1, 0)
    q_head = group_head * GROUP + pair % GROUP
    live = valid[:, None] & (e < E)[None, :]
    at = (token + pair // GROUP)[:, None] * q_stride + (q_head * E)[:, None] + e[None, :]
    query = tl.load(q + at, mask=live, other=0.0)
    head = arena + first.to(tl.int64) * granule + group_head * HEAD_BYTES
    m, sum_, acc = swept(
        query, position, head, entries + row * entry_stride, granule, lowest, low, last, window, factor, ceiling,
        WINDOWED, CAPPED, E, BLOCK_E, TILE, LANES, PIECE, KV,
    )  # fmt: skip
    sink = tl.load(sinks + q_head, mask=valid, other=0.0).to(tl.float32) if SINKS else m
    o = finished(m, sum_, acc, sink, SINKS)
    to = out + (token + pair // GROUP)[:, None] * (KV_HEADS * GROUP * E) + (q_head * E)[:, None] + e[None, :]
    tl.store(to, o.to(out.dtype.element_ty), mask=live)


def attend_many(launch: Launch, out: Tensor, tile: Tile, work: Tensor) -> None:
    """Writes the outputs of the tiles in `work`."""
    prefill_kernel[(work.shape[0] * launch.form.kv_heads,)](
        launch.q,
        out,
        work,
        launch.arena,
        launch.entries,
        launch.cu_q,
        launch.context,
        launch.sinks,
        launch.form.memory.first,
        launch.form.memory.granule,
        launch.entries.stride(0),
        launch.q.stride(0),
        launch.window,
        launch.factor,
        launch.ceiling,
        **prefill_constants(launch.form, tile),
        num_warps=tile.warps,
        num_stages=STAGES,
    )


def prefill_constants(form: Form, tile: Tile) -> dict[str, Any]:
    """What the kernel is compiled for."""
    return form.constants(tile) | {"KV_HEADS": form.kv_heads}
