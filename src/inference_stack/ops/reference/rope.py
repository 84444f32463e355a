"""Rotary positions (arXiv:2104.09864, half-rotation layout) and the store of K and V: the only writer of KV memory.

With x = (x1 | x2): y = (x1 * cos1 - x2 * sin1 | x2 * cos2 + x1 * sin2) in fp32, each product and sum rounded once. q and k may
first be normalised per head. k and v are then encoded (`kv_codec`) and written as flat rows of distinct addresses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inference_stack.ops.api import HeadSpec, KvLayer, Rope, StepInputs
from inference_stack.ops.reference.arena import arena_rows, layer_row, store_index
from inference_stack.ops.reference.kv_codec import encode
from inference_stack.ops.reference.norms import normalise
from inference_stack.ops.reference.step_cache import StepCache
from inference_stack.ops.workspace import Workspace


class RopeStore:
    """`Ops.rope_store`. What layers share (angles, row indices) is computed once per step."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._cache = StepCache()

    def __call__(self, qkv_TX: Tensor, heads: HeadSpec, kv: KvLayer, step: StepInputs) -> Tensor:
        """q_THE rotated; k and v are in the arena."""
        tokens, split = qkv_TX.shape[0], heads.q_heads + heads.kv_heads
        qkv_TXE = qkv_TX.view(tokens, split + heads.kv_heads, heads.head_dim)
        q, k, v = qkv_TXE[:, : heads.q_heads], qkv_TXE[:, heads.q_heads : split], qkv_TXE[:, split:]
        cos, sin = self._cache.get(step, ("angles", id(heads.rope)), lambda: _angles(heads.rope, step.positions_T))
        q_THE = self._workspace.take((tokens, heads.q_heads, heads.head_dim), torch.float32)
        rotate(_normed(q, heads.q_norm_E, heads.norm_eps), cos, sin, q_THE)
        k_TGE = torch.empty(tokens, heads.kv_heads, heads.head_dim, device=qkv_TX.device)
        rotate(_normed(k, heads.k_norm_E, heads.norm_eps), cos, sin, k_TGE)
        self._store(k_TGE, v, kv, step)
        return q_THE

    def _store(self, k_TGE: Tensor, v_TGE: Tensor, kv: KvLayer, step: StepInputs) -> None:
        table = step.tables[kv.group]
        key = ("store", kv.group, kv.granule_bytes, kv.kv_heads, kv.head_dim, kv.dtype)
        places = self._cache.get(step, key, lambda: store_index(kv, table.entry_T, table.offset_T))
        (keys, key_scales), (values, value_scales) = encode(k_TGE, kv.dtype), encode(v_TGE, kv.dtype)
        pieces = [piece for piece in (keys, values, key_scales, value_scales) if piece is not None]
        for piece, (index, row_bytes) in zip(pieces, places, strict=True):
            rows = arena_rows(kv, row_bytes)
            stored = piece.contiguous().view(torch.uint8).view(-1, row_bytes).view(rows.dtype)
            rows.index_copy_(0, index.reshape(-1) + layer_row(kv, row_bytes), stored)


def _angles(rope: Rope, positions_T: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, 1, E] of the step's positions."""
    return rope.cos_PE.index_select(0, positions_T)[:, None], rope.sin_PE.index_select(0, positions_T)[:, None]


def _normed(x: Tensor, weight_E: Tensor | None, eps: float) -> Tensor:
    return x if weight_E is None else normalise(x, weight_E, eps, torch.empty(x.shape, device=x.device))


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """The rotation over the last dimension E of `x` [T, heads, E], written to `out`."""
    half = x.shape[-1] // 2
    x1, x2 = x[..., :half], x[..., half:]
    torch.mul(x, cos, out=out) if out.is_contiguous() else out.copy_(x * cos)
    out[..., :half].sub_(x2 * sin[..., :half])
    out[..., half:].add_(x1 * sin[..., half:])
