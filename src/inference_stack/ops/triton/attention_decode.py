"""Attention of rows with few queries, decode and verify: the keys of a row are shared out among programs, then merged.

    split     a program: one row, one KV head, a share of the keys     (m, l, acc) ─▶ memory, or o where there is one share
    reduce    a program: four of a row's (query, head) pairs           shares in ascending order ─▶ o

A tile holds a KV head's whole group of query heads times the row's queries. In deterministic mode shares are lanes
(`attention_tiles`) whatever the launch is; else they are as many equal runs of tiles as fill the GPU. Floor: each key and value
read once, 2 · G · E · context numbers a row; 4 · H · E · context operations, M/group times as many with the tile's empty rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from inference_stack.ops.triton.attention_shapes import STAGES, Form, Launch, Tile
from inference_stack.ops.triton.attention_tiles import NEVER, chain, empty, finished, merged, swept, tile_range
from inference_stack.ops.triton.kernel import kernel, kernel_for_any
from inference_stack.ops.workspace import Workspace

REDUCED: Final = 4
"""Pairs of one reducing program."""
REDUCE_WARPS: Final = 4
AT_ONCE: Final = tl.constexpr(8)
"""Shares whose loads a reducing program has under way together."""
WAVES: Final = 4
"""Programs wanted for each multiprocessor."""


@kernel
def row_bounds(cu_q: tl.tensor, context: tl.tensor, row: tl.tensor) -> tl.tensor:
    """A row's first token, its queries, and the position after its last one."""
    token = tl.load(cu_q + row)
    return token, (tl.load(cu_q + row + 1) - token).to(tl.int32), tl.load(context + row).to(tl.int32)


@kernel
def shares_of(low: tl.tensor, last: tl.tensor, share: tl.tensor, slots: tl.tensor, TILE: tl.constexpr) -> tl.tensor:
    """The tiles [begin, end) of a share of keys low … last, and how many shares have any."""
    first, behind = low // TILE, tl.where(last < 0, 0, last // TILE + 1)
    each = tl.maximum(tl.cdiv(behind - first, slots), 1)
    begin = first + share * each
    return begin, tl.minimum(begin + each, behind), tl.cdiv(behind - first, each)


@kernel_for_any("cu_q", "context", "entries", "first", "entry_stride", "slots", "height", "window")
def split_kernel(
    q: tl.tensor,
    out: tl.tensor,
    partial: tl.tensor,
    stats: tl.tensor,
    arena: tl.tensor,
    entries: tl.tensor,
    cu_q: tl.tensor,
    context: tl.tensor,
    sinks: tl.tensor,
    first: tl.tensor,
    granule: tl.tensor,
    entry_stride: tl.tensor,
    q_stride: tl.tensor,
    slots: tl.tensor,
    height: tl.tensor,
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
    FINAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    KV: tl.constexpr,
    HEAD_BYTES: tl.constexpr,
) -> None:
    """Grid (KV heads, rows, programs a row). `partial` fp32 [rows, KV heads, slots, height, E] and `stats` fp32
    [rows, KV heads, slots, 2, height] receive the states, unless FINAL; rows of more than `height` pairs are left to others."""
    group_head = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    token, queries, length = row_bounds(cu_q, context, row)
    pairs = queries * GROUP
    if pairs > height:
        return
    pair = tl.arange(0, M)
    e = tl.arange(0, BLOCK_E)
    valid = pair < pairs
    start = length - queries
    position = tl.where(valid & (length > 0), start + pair // GROUP, -1)
    q_head = group_head * GROUP + pair % GROUP
    low = 0
    if WINDOWED:
        low = tl.maximum(start - window + 1, 0)
    last = length - 1
    live = valid[:, None] & (e < E)[None, :]
    at = (token + pair // GROUP)[:, None] * q_stride + (q_head * E)[:, None] + e[None, :]
    query = tl.load(q + at, mask=live, other=0.0)
    head = arena + first.to(tl.int64) * granule + group_head * HEAD_BYTES
    blocks = entries + row * entry_stride
    if FINAL:
        m, sum_, acc = swept(
            query, position, head, blocks, granule, start, low, last, window, factor, ceiling,
            WINDOWED, CAPPED, E, BLOCK_E, TILE, LANES, PIECE, KV,
        )  # fmt: skip
        sink = tl.load(sinks + q_head, mask=valid, other=0.0).to(tl.float32) if SINKS else m
        o = finished(m, sum_, acc, sink, SINKS)
        width = tl.num_programs(0) * GROUP * E
        to = out + (token + pair // GROUP)[:, None] * width + (q_head * E)[:, None] + e[None, :]
        tl.store(to, o.to(out.dtype.element_ty), mask=live)
    else:
        places = (row * tl.num_programs(0) + group_head) * slots
        share = tl.program_id(2)
        if LANES:
            for lane in range(share, tl.minimum(last // PIECE + 1, LANES), tl.num_programs(2)):
                begin, end = tile_range(lane, low, last, LANES, PIECE, TILE)
                m, sum_, acc = empty(M, BLOCK_E)
                m, sum_, acc = chain(
                    m, sum_, acc, query, position, head, blocks, granule, lane, begin, end, low, last, window, factor, ceiling,
                    True, WINDOWED, CAPPED, E, BLOCK_E, TILE, LANES, PIECE, KV,
                )  # fmt: skip
                keep(partial, stats, places + lane, height, m, sum_, acc, pair, e, live, valid, E)
        else:
            begin, end, _ = shares_of(low, last, share, slots, TILE)
            if begin < end:
                m, sum_, acc = empty(M, BLOCK_E)
                m, sum_, acc = chain(
                    m, sum_, acc, query, position, head, blocks, granule, 0, begin, end, low, last, window, factor, ceiling,
                    True, WINDOWED, CAPPED, E, BLOCK_E, TILE, LANES, PIECE, KV,
                )  # fmt: skip
                keep(partial, stats, places + share, height, m, sum_, acc, pair, e, live, valid, E)


@kernel
def keep(
    partial: tl.tensor,
    stats: tl.tensor,
    place: tl.tensor,
    height: tl.tensor,
    m: tl.tensor,
    sum_: tl.tensor,
    acc: tl.tensor,
    pair: tl.tensor,
    e: tl.tensor,
    live: tl.tensor,
    valid: tl.tensor,
    E: tl.constexpr,
) -> None:
    """Writes a state to its place."""
    tl.store(partial + (place * height + pair)[:, None] * E + e[None, :], acc, mask=live)
    tl.store(stats + place * 2 * height + pair, m, mask=valid)
    tl.store(stats + (place * 2 + 1) * height + pair, sum_, mask=valid)


@kernel_for_any("cu_q", "context", "slots", "height", "window")
def reduce_kernel(
    out: tl.tensor,
    partial: tl.tensor,
    stats: tl.tensor,
    cu_q: tl.tensor,
    context: tl.tensor,
    sinks: tl.tensor,
    slots: tl.tensor,
    height: tl.tensor,
    window: tl.tensor,
    GROUP: tl.constexpr,
    E: tl.constexpr,
    BLOCK_E: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
    PIECE: tl.constexpr,
    WINDOWED: tl.constexpr,
    SINKS: tl.constexpr,
) -> None:
    """Grid (KV heads, rows, parts of a row's pairs)."""
    group_head = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    token, queries, length = row_bounds(cu_q, context, row)
    pairs = queries * GROUP
    pair = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    if (pairs > height) | (tl.program_id(2) * ROWS >= pairs):
        return
    e = tl.arange(0, BLOCK_E)
    valid = pair < pairs
    live = valid[:, None] & (e < E)[None, :]
    if LANES:
        used = tl.minimum(tl.cdiv(length, PIECE), LANES)
    else:
        low = tl.maximum(length - queries - window + 1, 0) if WINDOWED else 0
        _, _, used = shares_of(low, length - 1, 0, slots, TILE)
    m, sum_, acc = empty(ROWS, BLOCK_E)
    first = (row * tl.num_programs(0) + group_head) * slots
    for base in range(0, used, AT_ONCE):
        for i in tl.static_range(0, AT_ONCE):
            there = base + i < used
            place = first + base + i
            m2 = tl.load(stats + place * 2 * height + pair, mask=valid & there, other=NEVER)
            sum2 = tl.load(stats + (place * 2 + 1) * height + pair, mask=valid & there, other=0.0)
            acc2 = tl.load(partial + (place * height + pair)[:, None] * E + e[None, :], mask=live & there, other=0.0)
            m, sum_, acc = merged(m, sum_, acc, m2, sum2, acc2)
    q_head = group_head * GROUP + pair % GROUP
    sink = tl.load(sinks + q_head, mask=valid, other=0.0).to(tl.float32) if SINKS else m
    o = finished(m, sum_, acc, sink, SINKS)
    width = tl.num_programs(0) * GROUP * E
    to = out + (token + pair // GROUP)[:, None] * width + (q_head * E)[:, None] + e[None, :]
    tl.store(to, o.to(out.dtype.element_ty), mask=live)


@dataclass(frozen=True, slots=True)
class Sharing:
    """Programs that share a row's keys, and the states that they leave (0: none, there is one program)."""

    programs: int
    slots: int


def sharing(rows: int, kv_heads: int, blocks: int, tile: Tile, processors: int) -> Sharing:
    """What fills the GPU, from the shapes of the launch alone. `blocks` is the width of the block table."""
    wanted = max(1, min(-(-WAVES * processors // (rows * kv_heads)), most_shares(blocks, tile)))
    if wanted == 1:
        return Sharing(1, 0)
    return Sharing(wanted, most_shares(blocks, tile) if tile.lanes else wanted)


def most_shares(blocks: int, tile: Tile) -> int:
    """Lanes that a row may have keys in, or runs of tiles that are worth a program."""
    if tile.lanes:
        return min(tile.lanes, -(-blocks * 16 // tile.piece))
    return min(64, -(-blocks * 16 // (2 * tile.keys)))


def attend_few(launch: Launch, out: Tensor, tile: Tile, height: int, workspace: Workspace) -> None:
    """Writes the outputs of all rows of at most `height` (query, head) pairs of a KV head."""
    form = launch.form
    rows, blocks = launch.entries.shape
    shared = sharing(rows, form.kv_heads, blocks, tile, launch.processors)
    partial, stats = launch.q, launch.q
    if shared.slots:
        states = (rows, form.kv_heads, shared.slots)
        partial = workspace.take((*states, height, form.head_dim), torch.float32, "samples")
        stats = workspace.take((*states, 2, height), torch.float32, "samples")
    split_kernel[(form.kv_heads, rows, shared.programs)](
        launch.q,
        out,
        partial,
        stats,
        launch.arena,
        launch.entries,
        launch.cu_q,
        launch.context,
        launch.sinks,
        form.memory.first,
        form.memory.granule,
        launch.entries.stride(0),
        launch.q.stride(0),
        shared.slots,
        height,
        launch.window,
        launch.factor,
        launch.ceiling,
        **split_constants(form, tile, final=not shared.slots),
        num_warps=tile.warps,
        num_stages=STAGES,
    )
    if shared.slots:
        parts = triton.cdiv(height, REDUCED)
        reduce_kernel[(form.kv_heads, rows, parts)](
            out, partial, stats, launch.cu_q, launch.context, launch.sinks, shared.slots, height,
            launch.window, **reduce_constants(form, tile), num_warps=REDUCE_WARPS,
        )  # fmt: skip


def split_constants(form: Form, tile: Tile, final: bool) -> dict[str, Any]:
    """What the split kernel is compiled for."""
    return form.constants(tile) | {"FINAL": final}


def reduce_constants(form: Form, tile: Tile) -> dict[str, Any]:
    """What the reduce kernel is compiled for."""
    names = ("GROUP", "E", "BLOCK_E", "TILE", "LANES", "PIECE", "WINDOWED", "SINKS")
    return {name: form.constants(tile)[name] for name in names} | {"ROWS": REDUCED}
