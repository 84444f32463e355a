"""Addresses inside the KV arena: flat, non-overlapping rows of bytes by computed index, and nothing else.

A unit is [kv_heads][16 tokens][K | V]. The arena is seen as a matrix of rows of `row_bytes`, the largest size that divides both
a granule and the piece that is wanted, so that any block-table entry begins on a row.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.ops.api import KvLayer


def token_bytes(kv: KvLayer) -> int:
    """Bytes of one token's K and V for one head."""
    return 2 * kv.head_dim * kv.dtype.itemsize


def arena_rows(kv: KvLayer, row_bytes: int) -> Tensor:
    """The arena as int64 or uint8 rows of `row_bytes` (a view); int64 when they divide, since wide elements copy faster."""
    whole = kv.arena.numel() // row_bytes * row_bytes
    rows = kv.arena[:whole].view(-1, row_bytes)
    return rows.view(torch.int64) if row_bytes % 8 == 0 and kv.arena.data_ptr() % 8 == 0 else rows


def piece_index(kv: KvLayer, entry: Tensor, piece: Tensor, piece_bytes: int) -> tuple[Tensor, int]:
    """Row indices int64 [..., rows of a piece] of piece number `piece` of the unit behind `entry` (broadcast together).

    Without the layer's offset, so that layers of a group share them: add `layer_row(kv, row_bytes)`. Also returns `row_bytes`.
    """
    row_bytes = gcd(kv.granule_bytes, piece_bytes)
    parts = piece_bytes // row_bytes
    first = entry * (kv.granule_bytes // row_bytes) + piece * parts
    return first.unsqueeze(-1) + torch.arange(parts, device=entry.device), row_bytes


def layer_row(kv: KvLayer, row_bytes: int) -> int:
    """The row at which this layer's units are displaced from those of offset 0."""
    return kv.offset_bytes // row_bytes


def store_index(kv: KvLayer, entry_T: Tensor, offset_T: Tensor) -> tuple[Tensor, int]:
    """Rows [T, G, parts] that take token t's K and V of head g; every one is distinct. Also `row_bytes`."""
    head = torch.arange(kv.kv_heads, device=entry_T.device) * BLOCK_TOKENS
    return piece_index(kv, entry_T[:, None], head + offset_T[:, None], token_bytes(kv))


def load_index(kv: KvLayer, entry_WB: Tensor) -> tuple[Tensor, int]:
    """Rows [W, G, B, parts] that hold, for pair w and head g, the 16 tokens of each of its blocks. Also `row_bytes`."""
    head = torch.arange(kv.kv_heads, device=entry_WB.device)[:, None]
    return piece_index(kv, entry_WB[:, None, :], head, BLOCK_TOKENS * token_bytes(kv))
