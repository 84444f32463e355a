"""What both attention kernels are made of: online softmax over tiles of keys gathered through the block table.

A state (m, l, acc) of M rows holds the largest score so far in base 2, the sum of 2^(s - m), and the values summed under these
weights (FlashAttention, arXiv:2205.14135). Rows are (query, head) pairs of one KV head, so that a group shares what is loaded.

    chain   one state over neighbouring tiles       lanes   a state per lane, merged in the lanes' order

Lane i of LANES has the keys of pieces i, i + LANES, i + 2·LANES … of PIECE tokens, counted from position 0: which numbers are
added in which order follows from a query's position alone, whoever shares the launch, and lanes can be computed apart. A tile
that a row does not see leaves its state as it is, bit for bit. Products and sums that could be fused are, explicitly, so that no
compiler decides it differently in two kernels. It knows no grid and no block table's origin.
"""

from __future__ import annotations

from typing import Final

import triton.language as tl

from inference_stack.ops.triton.kernel import kernel

NEVER: Final = tl.constexpr(-1.0e30)
"""The largest score of a row that has seen nothing: finite, and below every score."""
LOG2E: Final = tl.constexpr(1.4426950408889634)
HIDDEN: Final = tl.constexpr(float("-inf"))


@kernel
def empty(M: tl.constexpr, BLOCK_E: tl.constexpr) -> tl.tensor:
    """The state of rows that have seen nothing."""
    m = tl.full([M], NEVER, tl.float32)
    return m, tl.zeros([M], tl.float32), tl.zeros([M, BLOCK_E], tl.float32)


@kernel
def merged(m: tl.tensor, sum_: tl.tensor, acc: tl.tensor, m2: tl.tensor, sum2: tl.tensor, acc2: tl.tensor) -> tl.tensor:
    """The state of rows that have seen what two states saw."""
    top = tl.maximum(m, m2)
    share = tl.exp2(m - top)
    share2 = tl.exp2(m2 - top)
    total = tl.fma(sum_, share, sum2 * share2)
    return top, total, tl.fma(acc, share[:, None] + tl.zeros_like(acc), acc2 * share2[:, None])


@kernel
def finished(m: tl.tensor, sum_: tl.tensor, acc: tl.tensor, sink: tl.tensor, SINKS: tl.constexpr) -> tl.tensor:
    """What the rows give out: zero where nothing was seen. `sink` [M] is each row's extra score, in base e."""
    if SINKS:
        z = sink * LOG2E
        top = tl.maximum(m, z)
        share = tl.exp2(m - top)
        sum_ = tl.fma(sum_, share, tl.exp2(z - top))
        acc = acc * share[:, None]
    return acc * (1.0 / tl.where(sum_ == 0.0, 1.0, sum_))[:, None]


@kernel
def tile_range(
    lane: tl.tensor, low: tl.tensor, last: tl.tensor, LANES: tl.constexpr, PIECE: tl.constexpr, TILE: tl.constexpr
) -> tl.tensor:
    """The tiles of a lane that hold keys low … last, as ordinals [first, end) among all of the lane's tiles."""
    EACH: tl.constexpr = PIECE // TILE
    low_piece = low // PIECE
    last_piece = last // PIECE
    first = tl.maximum(low_piece - lane + LANES - 1, 0) // LANES
    tile = first * EACH
    if lane + first * LANES == low_piece:
        tile += (low % PIECE) // TILE
    pieces = tl.maximum(last_piece - lane + LANES, 0) // LANES
    end = pieces * EACH
    if lane + (pieces - 1) * LANES == last_piece:
        end -= EACH - 1 - (last % PIECE) // TILE
    return tile, end


@kernel
def chain(
    m: tl.tensor,
    sum_: tl.tensor,
    acc: tl.tensor,
    query: tl.tensor,
    position: tl.tensor,
    head: tl.tensor,
    entries: tl.tensor,
    granule: tl.tensor,
    lane: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    low: tl.tensor,
    last: tl.tensor,
    window: tl.tensor,
    factor: tl.tensor,
    ceiling: tl.tensor,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    E: tl.constexpr,
    BLOCK_E: tl.constexpr,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
    PIECE: tl.constexpr,
    KV: tl.constexpr,
) -> tl.tensor:
    """The state after tiles first … end-1: of a lane, or with LANES 0 of the whole sequence.

    `query` [M, BLOCK_E]; `position` [M], -1 for rows to leave alone; `head` is this KV head in the unit of entry 0; `entries`
    the row's block table. No key outside low … last is read. A score is q·k · `factor` in base 2, or with CAPPED
    tanh(q·k · factor) · ceiling. Without MASKED every row sees every key of these tiles.
    """
    EACH: tl.constexpr = PIECE // TILE
    place = tl.arange(0, TILE)
    e = tl.arange(0, BLOCK_E)
    inner = (e < E)[None, :]
    for number in range(first, end):
        start = (lane + (number // EACH) * LANES) * PIECE + (number % EACH) * TILE if LANES else number * TILE
        key = start + place
        if MASKED:
            inside = (key >= low) & (key <= last)
            entry = tl.load(entries + key // 16, mask=inside, other=0)
        else:
            entry = tl.load(entries + key // 16)
        unit = head + entry * granule
        numbers = unit.to(tl.pointer_type(KV))[:, None] + ((key % 16) * (2 * E))[:, None] + e[None, :]
        if MASKED and BLOCK_E != E:
            k = tl.load(numbers, mask=inside[:, None] & inner, other=0.0)
            v = tl.load(numbers + E, mask=inside[:, None] & inner, other=0.0)
        elif MASKED:
            k = tl.load(numbers, mask=inside[:, None], other=0.0)
            v = tl.load(numbers + E, mask=inside[:, None], other=0.0)
        elif BLOCK_E != E:
            k = tl.load(numbers, mask=inner, other=0.0)
            v = tl.load(numbers + E, mask=inner, other=0.0)
        else:
            k = tl.load(numbers)
            v = tl.load(numbers + E)
        s = tl.dot(query, tl.trans(k.to(query.dtype)), input_precision="ieee")
        if tl.int8 == KV:
            scales = (unit + 32 * E).to(tl.pointer_type(tl.float16)) + key % 16
            if MASKED:
                key_scale = tl.load(scales, mask=inside, other=0.0).to(tl.float32)
                value_scale = tl.load(scales + 16, mask=inside, other=0.0).to(tl.float32)
            else:
                key_scale = tl.load(scales).to(tl.float32)
                value_scale = tl.load(scales + 16).to(tl.float32)
            s = s * key_scale[None, :]
        if CAPPED:
            s = 1.0 - 2.0 / (tl.exp2(s * factor * (2.0 * LOG2E)) + 1.0)
            times = ceiling
        else:
            times = factor
        if MASKED:
            seen = key[None, :] <= position[:, None]
            if WINDOWED:
                seen = seen & (key[None, :] > position[:, None] - window)
            s = tl.where(seen, s, HIDDEN)
        top = tl.maximum(m, tl.max(s, 1) * times)
        p = tl.exp2(tl.fma(s, tl.zeros_like(s) + times, tl.zeros_like(s) - top[:, None]))
        share = tl.exp2(m - top)
        sum_ = tl.fma(sum_, share, tl.sum(p, 1))
        if tl.int8 == KV:
            p = p * value_scale[None, :]
        acc = tl.dot(p.to(query.dtype), v.to(query.dtype), acc * share[:, None], input_precision="ieee")
        m = top
    return m, sum_, acc


@kernel
def swept(
    query: tl.tensor,
    position: tl.tensor,
    head: tl.tensor,
    entries: tl.tensor,
    granule: tl.tensor,
    lowest: tl.tensor,
    low: tl.tensor,
    last: tl.tensor,
    window: tl.tensor,
    factor: tl.tensor,
    ceiling: tl.tensor,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    E: tl.constexpr,
    BLOCK_E: tl.constexpr,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
    PIECE: tl.constexpr,
    KV: tl.constexpr,
) -> tl.tensor:
    """The state over all keys low … last: lane by lane, or with LANES 0 in one chain. `lowest` is the first row's position."""
    m, sum_, acc = empty(query.shape[0], BLOCK_E)
    if LANES:
        for lane in range(0, tl.minimum(last // PIECE + 1, LANES)):
            first, end = tile_range(lane, low, last, LANES, PIECE, TILE)
            m2, sum2, acc2 = empty(query.shape[0], BLOCK_E)
            m2, sum2, acc2 = chain(
                m2, sum2, acc2, query, position, head, entries, granule, lane, first, end, low, last, window, factor, ceiling,
                True, WINDOWED, CAPPED, E, BLOCK_E, TILE, LANES, PIECE, KV,
            )  # fmt: skip
            m, sum_, acc = merged(m, sum_, acc, m2, sum2, acc2)
    else:
        first = low // TILE
        if not WINDOWED:
            clear = (lowest + 1) // TILE
            m, sum_, acc = chain(
                m, sum_, acc, query, position, head, entries, granule, 0, first, clear, low, last, window, factor, ceiling,
                False, WINDOWED, CAPPED, E, BLOCK_E, TILE, LANES, PIECE, KV,
            )  # fmt: skip
            first = clear
        m, sum_, acc = chain(
            m, sum_, acc, query, position, head, entries, granule, 0, first, last // TILE + 1, low, last, window, factor, ceiling,
            True, WINDOWED, CAPPED, E, BLOCK_E, TILE, LANES, PIECE, KV,
        )  # fmt: skip
    return m, sum_, acc
