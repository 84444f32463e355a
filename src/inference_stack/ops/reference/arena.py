"""Addresses inside the KV arena: flat, non-overlapping rows of bytes by computed index, and nothing else.

The unit behind an entry holds, per KV head, keys [E][16], values [16][E], and with int8 the tokens' scales, fp16 [16] of the keys
and [16] of the values. The arena is seen as a matrix of rows of `row_bytes`, the largest size that divides a granule and all
places of the pieces that are wanted, so that any block-table entry begins on a row.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from inference_stack.core.kv_spec import SCALE_BYTES
from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.ops.api import KvLayer

INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def head_bytes(kv: KvLayer) -> int:
    """Bytes of one head's keys, values and scales of one block."""
    return kv.unit_bytes // kv.kv_heads


def arena_rows(kv: KvLayer, row_bytes: int) -> Tensor:
    """The arena as rows of `row_bytes` (a view), in the widest integers that divide them, since those copy faster."""
    whole = kv.arena.numel() // row_bytes * row_bytes
    rows = kv.arena[:whole].view(-1, row_bytes)
    common = gcd(8, row_bytes, kv.arena.data_ptr())
    return rows.view(INTEGERS[common]) if common in INTEGERS else rows


def layer_row(kv: KvLayer, row_bytes: int) -> int:
    """The row at which this layer's units are displaced from those of offset 0."""
    return kv.offset_bytes // row_bytes


def load_index(kv: KvLayer, entry_WB: Tensor) -> tuple[Tensor, int]:
    """Rows [W, G, B, parts] that hold, for pair w and head g, all of each of its blocks. Also `row_bytes`.

    Without the layer's offset, so that layers of a group share them: add `layer_row(kv, row_bytes)`.
    """
    head = torch.arange(kv.kv_heads, device=entry_WB.device)[:, None] * head_bytes(kv)
    return _piece_index(kv, entry_WB[:, None, :], head, head_bytes(kv), head_bytes(kv))


def store_index(kv: KvLayer, entry_T: Tensor, offset_T: Tensor) -> list[tuple[Tensor, int]]:
    """Where token t's K and V of head g go: rows and `row_bytes` of each piece. Every row is distinct.

    The pieces: key numbers [T, G, E], values [T, G, parts]; with int8 also key scales [T, G, 1] and value scales [T, G, 1].
    """
    size, width, device = kv.dtype.itemsize, kv.head_dim, entry_T.device
    head_TG = torch.arange(kv.kv_heads, device=device) * head_bytes(kv) + torch.zeros_like(offset_T)[:, None]
    entry_TG = entry_T[:, None].expand_as(head_TG)
    offset_TG, values = offset_T[:, None], width * BLOCK_TOKENS * size
    key_TGE = (head_TG + offset_TG * size)[..., None] + torch.arange(width, device=device) * (BLOCK_TOKENS * size)
    key_index, key_bytes = _piece_index(kv, entry_TG[..., None], key_TGE, size, size)
    pieces = [
        (key_index.flatten(2), key_bytes),
        _piece_index(kv, entry_TG, head_TG + values + offset_TG * (width * size), width * size, width * size),
    ]
    if kv.dtype == torch.int8:
        for scales in (2 * values, 2 * values + BLOCK_TOKENS * SCALE_BYTES):
            place_TG = head_TG + scales + offset_TG * SCALE_BYTES
            pieces.append(_piece_index(kv, entry_TG, place_TG, SCALE_BYTES, SCALE_BYTES))
    return pieces


def _piece_index(kv: KvLayer, entry: Tensor, start: Tensor, grain: int, piece_bytes: int) -> tuple[Tensor, int]:
    """Row indices int64 [..., rows of a piece] of pieces at byte `start` of the units behind `entry` (broadcast together).

    Starts are multiples of `grain` from the start of a head. Also returns `row_bytes`.
    """
    row_bytes = gcd(kv.granule_bytes, head_bytes(kv), grain, piece_bytes)
    first = entry * (kv.granule_bytes // row_bytes) + start // row_bytes
    return first.unsqueeze(-1) + torch.arange(piece_bytes // row_bytes, device=entry.device), row_bytes
