"""Which experts a token goes through, and which tokens an expert gets, without the host's knowing.

    route   logits [T, X]            ▸ experts and weights [T, K], best first
    count   experts of the pairs     ▸ how many pairs each expert has, for every chunk of pairs
    place   counts                   ▸ pairs in the order of their experts (stable), and tiles of that order with one expert each

A pair p = t·K + r is token t with its expert of rank r. How many tiles there are is known on the device alone: `Tiles` has room
for the most there can be, and tiles that nobody needs have no rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from inference_stack.ops.triton.kernel import Shipped, kernel_for_any
from inference_stack.ops.workspace import Workspace

WIDEST: Final = 256
"""Most experts of a layer."""
RANKS: Final = 16
PAIRS: Final = 32
"""Pairs that a program counts or places at once."""
CHUNKS: Final = 128
"""Most programs that count: each that places reads what all of them counted."""
WIDTHS: Final = (32, 128, WIDEST)

COUNTS: Final = ("count", "top_k", "pairs", "rounds", "chunks", "tiles", "tile", "row_stride")
counting = kernel_for_any(*COUNTS)


@counting
def route_kernel(
    logits: tl.tensor,
    experts: tl.tensor,
    weights: tl.tensor,
    row_stride: tl.tensor,
    count: tl.tensor,
    top_k: tl.tensor,
    NORMALISED: tl.constexpr,
    WIDTH: tl.constexpr,
    MOST: tl.constexpr,
) -> None:
    """One token a program. Ties go to the lower expert; logits that are not finite make the weights NaN, and ids stay valid."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    rank = tl.arange(0, MOST)
    inside = column < count
    raw = tl.load(logits + token * row_stride + column, mask=inside, other=0.0).to(tl.float32)
    poison = tl.sum(raw - raw, axis=0)
    score = tl.where(raw == raw, raw, -3.0e38)
    score = tl.minimum(tl.maximum(score, -3.0e38), 3.0e38)
    left = tl.where(inside, score, float("-inf"))
    top = tl.max(left, axis=0)
    chosen = tl.zeros([MOST], dtype=tl.int32)
    share = tl.zeros([MOST], dtype=tl.float32)
    for place in tl.range(top_k):
        best = tl.max(left, axis=0)
        expert = tl.min(tl.where(left == best, column, WIDTH), axis=0)
        chosen = tl.where(rank == place, expert, chosen)
        share = tl.where(rank == place, tl.exp(best - top), share)
        left = tl.where(column == expert, float("-inf"), left)
    every = tl.where(inside, tl.exp(score - top), 0.0)
    total = tl.sum(share, axis=0) if NORMALISED else tl.sum(every, axis=0)
    out = token * top_k + rank
    tl.store(experts + out, chosen, mask=rank < top_k)
    tl.store(weights + out, share / total + poison, mask=rank < top_k)


@counting
def count_kernel(
    experts: tl.tensor,
    counts: tl.tensor,
    pairs: tl.tensor,
    rounds: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """counts[chunk, expert] of one chunk of `rounds` · BLOCK pairs."""
    chunk = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    found = tl.zeros([WIDTH], dtype=tl.int32)
    for step in tl.range(rounds):
        pair = (chunk * rounds + step) * BLOCK + tl.arange(0, BLOCK)
        expert = tl.load(experts + pair, mask=pair < pairs, other=-1)
        found += tl.sum((expert[:, None] == column[None, :]).to(tl.int32), axis=0)
    tl.store(counts + chunk * WIDTH + column, found)


@counting
def place_kernel(
    experts: tl.tensor,
    counts: tl.tensor,
    order: tl.tensor,
    tile_expert: tl.tensor,
    tile_first: tl.tensor,
    tile_rows: tl.tensor,
    pairs: tl.tensor,
    rounds: tl.tensor,
    chunks: tl.tensor,
    tiles: tl.tensor,
    tile: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One chunk's pairs to their places, and this program's share of the tiles, each of at most `tile` rows."""
    chunk = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    line = tl.arange(0, BLOCK)
    total = tl.zeros([WIDTH], dtype=tl.int32)
    before = tl.zeros([WIDTH], dtype=tl.int32)
    for low in tl.range(0, chunks, BLOCK):
        other = low + line
        found = tl.load(
            counts + other[:, None] * WIDTH + column[None, :], mask=(other < chunks)[:, None], other=0
        )  # many at once: one after the other would wait for memory every time
        total += tl.sum(found, axis=0)
        before += tl.sum(tl.where((other < chunk)[:, None], found, 0), axis=0)
    start = tl.cumsum(total, axis=0) - total
    free = start + before
    for step in tl.range(rounds):
        pair = (chunk * rounds + step) * BLOCK + line
        expert = tl.load(experts + pair, mask=pair < pairs, other=-1)
        hits = expert[:, None] == column[None, :]
        same = (expert[:, None] == expert[None, :]) & (line[None, :] < line[:, None])
        at = tl.sum(tl.where(hits, free[None, :], 0), axis=1) + tl.sum(same.to(tl.int32), axis=1)
        tl.store(order + at, pair, mask=pair < pairs)
        free += tl.sum(hits.to(tl.int32), axis=0)
    needed = (total + tile - 1) // tile
    end = tl.cumsum(needed, axis=0)
    for low in tl.range(chunk * BLOCK, tiles, chunks * BLOCK):
        index = low + line
        owner = tl.sum((end[None, :] <= index[:, None]).to(tl.int32), axis=1)
        mine = owner[:, None] == column[None, :]
        inner = (index - tl.sum(tl.where(mine, (end - needed)[None, :], 0), axis=1)) * tile
        size = tl.sum(tl.where(mine, total[None, :], 0), axis=1)
        first = tl.sum(tl.where(mine, start[None, :], 0), axis=1) + inner
        rows = tl.maximum(tl.minimum(size - inner, tile), 0)
        used = rows > 0
        tl.store(tile_expert + index, tl.where(used, owner, 0), mask=index < tiles)
        tl.store(tile_first + index, tl.where(used, first, 0), mask=index < tiles)
        tl.store(tile_rows + index, rows, mask=index < tiles)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Pairs int32 [P] in the order of their experts; and of each tile the expert, the first place in that order, and its rows
    (0: unused), int32 [tiles]. `most` is the number of tiles there is room for."""

    order: Tensor
    expert: Tensor
    first: Tensor
    rows: Tensor
    most: int


def route(workspace: Workspace, logits_TX: Tensor, top_k: int, normalised: bool) -> tuple[Tensor, Tensor]:
    """Expert ids int32 [T, K], best first, and their weights fp32 [T, K]."""
    tokens, count = logits_TX.shape
    if logits_TX.stride(1) != 1:
        logits_TX = logits_TX.contiguous()
    experts_TK = workspace.take_like(logits_TX, (tokens, top_k), torch.int32)
    weights_TK = workspace.take_like(logits_TX, (tokens, top_k), torch.float32)
    most = max(RANKS, triton.next_power_of_2(top_k))
    route_kernel[(tokens,)](
        logits_TX,
        experts_TK,
        weights_TK,
        logits_TX.stride(0),
        count,
        top_k,
        NORMALISED=normalised,
        WIDTH=WIDEST,
        MOST=most,
        num_warps=1,
    )
    return experts_TK, weights_TK


def tiles_at_most(pairs: int, count: int, tile: int) -> int:
    """How many tiles these pairs can need: every expert that has some may leave its last tile all but empty."""
    return (pairs + min(pairs, count) * (tile - 1)) // tile


def by_expert(experts_TK: Tensor, count: int, tile: int) -> Tiles:
    """The pairs sorted by expert and cut into tiles of at most `tile` rows."""
    pairs, device = experts_TK.numel(), experts_TK.device
    width = min(width for width in WIDTHS if width >= count)
    rounds = -(-pairs // (PAIRS * CHUNKS))
    chunks = -(-pairs // (PAIRS * rounds))
    most = tiles_at_most(pairs, count, tile)
    counts = torch.empty((chunks, width), dtype=torch.int32, device=device)
    order = torch.empty(pairs, dtype=torch.int32, device=device)
    expert, first, rows = (torch.empty(most, dtype=torch.int32, device=device) for _ in range(3))
    count_kernel[(chunks,)](experts_TK, counts, pairs, rounds, WIDTH=width, BLOCK=PAIRS, num_warps=4)
    place_kernel[(chunks,)](
        experts_TK,
        counts,
        order,
        expert,
        first,
        rows,
        pairs,
        rounds,
        chunks,
        most,
        tile,
        WIDTH=width,
        BLOCK=PAIRS,
        num_warps=8,
    )
    return Tiles(order, expert, first, rows, most)


def _shipped_route(normalised: bool) -> Shipped:
    integers = dict.fromkeys(("row_stride", "count", "top_k"), "i32")
    return Shipped(
        name=f"experts route {'normalised' if normalised else 'plain'}",
        kernel=route_kernel,
        signature={"logits": "*bf16", "experts": "*i32", "weights": "*fp32", **integers},
        constants={"NORMALISED": normalised, "WIDTH": WIDEST, "MOST": RANKS},
        aligned=("logits", "experts", "weights"),
        num_warps=1,
    )


def _shipped_count(width: int) -> Shipped:
    return Shipped(
        name=f"experts count {width}",
        kernel=count_kernel,
        signature={"experts": "*i32", "counts": "*i32", "pairs": "i32", "rounds": "i32"},
        constants={"WIDTH": width, "BLOCK": PAIRS},
        aligned=("experts", "counts"),
        num_warps=4,
    )


def _shipped_place(width: int) -> Shipped:
    tensors = ("experts", "counts", "order", "tile_expert", "tile_first", "tile_rows")
    integers = dict.fromkeys(("pairs", "rounds", "chunks", "tiles", "tile"), "i32")
    return Shipped(
        name=f"experts place {width}",
        kernel=place_kernel,
        signature={**dict.fromkeys(tensors, "*i32"), **integers},
        constants={"WIDTH": width, "BLOCK": PAIRS},
        aligned=tensors,
        num_warps=8,
    )


SHIPPED: Final = (
    _shipped_route(True),
    _shipped_route(False),
    *(_shipped_count(width) for width in WIDTHS),
    *(_shipped_place(width) for width in WIDTHS),
)
