"""What attention launches for a step, decided on the host from `cu_q` and `context` and shared by a group's layers.

item   a row's run of consecutive queries, at most `queries` long; it becomes one query tile per KV head
pair   one item with one key tile (128 keys at absolute positions) that at least one of its queries sees
batch  items of one tile height, longest first; pairs ordered by ordinal, so the j-th pairs of items 0 … n-1 are adjacent

    ordinal 0: item 0 1 2 3 | ordinal 1: item 0 1 2 | ordinal 2: item 0      (counts = 4, 3, 1)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.ops.api import KvLayer, StepInputs
from inference_stack.ops.reference.arena import load_index

KEY_TILE: Final = 128
QUERY_RUNS: Final = (1, 8, 32)
"""Queries per item: the smallest that holds a row's rest, else the largest."""
BATCH_BYTES: Final = 4 << 20
"""Bound on the temporaries of one batch; an item's pairs stay together, so a very long row may exceed it."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """One launch. I items, W pairs, nq = `queries` per item, Z zeroed keys.

    `query_I` int64 [I·nq]: token of each query (short items repeat their last). `place_N`, `token_N`: where finished rows
    are among the I·nq and which tokens they belong to. `item_W`: each pair's item. `load`: arena rows [W·G·blocks·parts].
    `unseen_Z`: rows of the gathered [W·G·128] keys that no query of the item sees. `bias` fp32 [W, 1, nq, 1, 128]: 0 or -inf.
    """

    queries: int
    counts: tuple[int, ...]
    query_I: Tensor
    place_N: Tensor
    token_N: Tensor
    item_W: Tensor
    load: Tensor
    row_bytes: int
    unseen_Z: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class _Items:
    """Columns over items: the row, its first token, how many queries, their first position, and the key tiles low … high."""

    row: Ints
    token: Ints
    count: Ints
    position: Ints
    low: Ints
    high: Ints

    def __getitem__(self, index: Ints | slice) -> _Items:
        return _Items(*(column[index] for column in self._columns()))

    def _columns(self) -> tuple[Ints, ...]:
        return self.row, self.token, self.count, self.position, self.low, self.high


def tile_height(queries: int, share: int) -> int:
    """Rows of a query tile: the queries of the `share` heads that read one KV head, filled up to a multiple of 8."""
    return -(-queries * share // 8) * 8


def plan(step: StepInputs, kv: KvLayer, runs: tuple[int, ...], share: int) -> tuple[Batch, ...]:
    """The launches of one step for layers like `kv`, with `share` query heads to a KV head and items of the given `runs`."""
    batches = []
    for queries in runs:
        items = _items(step, kv.window, queries, runs)
        if len(items.row) == 0:
            continue
        items = items[np.argsort(items.low - items.high, kind="stable")]
        pair_bytes = kv.kv_heads * KEY_TILE * 4 * (2 * kv.head_dim + tile_height(queries, share))
        for part in _parts(items, pair_bytes):
            batches.append(_batch(step, kv, part, queries))
    return tuple(batches)


def _items(step: StepInputs, window: int | None, queries: int, runs: tuple[int, ...]) -> _Items:
    """The items of height `queries`, in token order."""
    found: list[tuple[int, int, int, int]] = []
    for row, context in enumerate(step.context):
        start, stop = step.cu_q[row], step.cu_q[row + 1]
        token = start
        while token < stop:
            size = next((run for run in runs if run >= stop - token), runs[-1])
            count = min(size, stop - token)
            if size == queries:
                found.append((row, token, count, context - (stop - token)))
            token += count
    row_I, token_I, count_I, position_I = np.array(found, dtype=np.int64).reshape(-1, 4).T
    first = position_I * 0 if window is None else np.maximum(position_I - window + 1, 0)
    return _Items(row_I, token_I, count_I, position_I, first // KEY_TILE, (position_I + count_I - 1) // KEY_TILE)


def _parts(items: _Items, pair_bytes: int) -> Iterator[_Items]:
    """Items (longest first) in batches whose pairs stay within BATCH_BYTES."""
    pairs = np.cumsum(items.high - items.low + 1) * pair_bytes
    start = 0
    while start < len(pairs):
        budget = (pairs[start - 1] if start else 0) + BATCH_BYTES
        stop = max(start + 1, int(np.searchsorted(pairs, budget, side="right")))
        yield items[slice(start, stop)]
        start = stop


def _batch(step: StepInputs, kv: KvLayer, items: _Items, queries: int) -> Batch:
    counts, item_W, tile_W = _pairs(items)
    device = step.tokens_T.device
    offset = np.arange(queries)
    real_IQ = offset < items.count[:, None]
    token_IQ = items.token[:, None] + np.minimum(offset, items.count[:, None] - 1)
    unseen_WK, bias_WQK = _masks(items, item_W, tile_W, queries, kv.window)
    pair_head = (np.arange(len(item_W))[:, None] * kv.kv_heads + np.arange(kv.kv_heads))[:, :, None] * KEY_TILE
    unseen_WGK = np.broadcast_to(unseen_WK[:, None], (len(item_W), kv.kv_heads, KEY_TILE))
    load, row_bytes = load_index(kv, _entries(step, kv, items.row[item_W], tile_W))
    return Batch(
        queries=queries,
        counts=counts,
        query_I=torch.from_numpy(token_IQ.reshape(-1)).to(device),
        place_N=torch.from_numpy(np.flatnonzero(real_IQ)).to(device),
        token_N=torch.from_numpy(token_IQ[real_IQ]).to(device),
        item_W=torch.from_numpy(item_W).to(device),
        load=load.reshape(-1),
        row_bytes=row_bytes,
        unseen_Z=torch.from_numpy((pair_head + np.arange(KEY_TILE))[unseen_WGK]).to(device),
        bias=torch.from_numpy(bias_WQK[:, None, :, None]).to(device),
    )


def _pairs(items: _Items) -> tuple[tuple[int, ...], Ints, Ints]:
    """(counts, item of each pair, key tile of each pair), ordinal by ordinal."""
    lengths = items.high - items.low + 1
    counts = tuple(int((lengths > ordinal).sum()) for ordinal in range(int(lengths.max())))
    item_W = np.concatenate([np.arange(count) for count in counts])
    ordinal_W = np.repeat(np.arange(len(counts)), counts)
    return counts, item_W, items.low[item_W] + ordinal_W


def _entries(step: StepInputs, kv: KvLayer, row_W: Ints, tile_W: Ints) -> Tensor:
    """Arena entries int64 [W, blocks of a key tile]; blocks beyond the table repeat its last, and are masked as unseen."""
    entry_RB = step.tables[kv.group].entry_RB
    block_WB = tile_W[:, None] * (KEY_TILE // BLOCK_TOKENS) + np.arange(KEY_TILE // BLOCK_TOKENS)
    block_WB = np.minimum(block_WB, entry_RB.shape[1] - 1)
    device = entry_RB.device
    return entry_RB[torch.from_numpy(row_W).to(device)[:, None], torch.from_numpy(block_WB).to(device)]


def _masks(
    items: _Items, item_W: Ints, tile_W: Ints, queries: int, window: int | None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """(keys no query of the item sees [W, 128], the bias of every query and key [W, nq, 128])."""
    key_WK = tile_W[:, None] * KEY_TILE + np.arange(KEY_TILE)
    last_W = (items.position + items.count - 1)[item_W]
    query_WQ = np.minimum(items.position[item_W][:, None] + np.arange(queries), last_W[:, None])
    hidden_WQK = key_WK[:, None] > query_WQ[:, :, None]
    if window is not None:
        hidden_WQK |= key_WK[:, None] <= query_WQ[:, :, None] - window
    return hidden_WQK.all(axis=1), np.where(hidden_WQK, np.float32(-np.inf), np.float32(0.0))
