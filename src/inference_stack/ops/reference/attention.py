"""Causal attention straight from the arena: o = softmax(scale * q kᵀ + mask) v in fp32, over fixed key tiles.

For query i of a row and key tile t (128 keys at absolute positions, in ascending order) with scores s:
    m_t = max(s, -1e30)   p_t = exp(s - m_t)   l_t = sum p_t   o_t = p_t v
and over the tiles, with m = max m_t and c_t = exp(m_t - m): o = (sum c_t o_t) / (sum c_t l_t), summed in ascending order.
A tile that a query does not see at all has c_t l_t = 0 exactly, so skipping it changes nothing. (FlashAttention's online softmax,
arXiv:2205.14135, in its split form.) With a softcap c, a score s becomes c tanh(s / c) before the mask. A sink z joins m, and adds
exp(z - m) to the sum of c_t l_t. Products run on query tiles of heights seen to give equal bits; keys and values that no query
sees are zeroed before use, so the memory behind them may hold anything.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from inference_stack.core.kv_spec import SCALE_BYTES
from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.ops.api import KvLayer, StepInputs
from inference_stack.ops.reference.arena import arena_rows, head_bytes, layer_row
from inference_stack.ops.reference.attention_plan import KEY_TILE, QUERY_RUNS, Batch, plan, tile_height
from inference_stack.ops.reference.kv_codec import decode
from inference_stack.ops.reference.step_cache import StepCache
from inference_stack.ops.workspace import Workspace

NEVER: Final = -1e30
"""Stands in for the maximum of a tile in which nothing is seen: finite, and below every score."""


class Attention:
    """`Ops.attend`. The plan of a step is made once per group of equal layers."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._cache = StepCache()
        self._gathered = torch.empty(0, dtype=torch.uint8, device=workspace.device)
        self._runs: dict[tuple[int, int], tuple[int, ...]] = {}

    def __call__(
        self,
        q_THE: Tensor,
        kv: KvLayer,
        step: StepInputs,
        scale: float,
        softcap: float = 0.0,
        sinks_H: Tensor | None = None,
    ) -> Tensor:
        """o [T, H·E] fp32."""
        tokens, q_heads, head_dim = q_THE.shape
        share = q_heads // kv.kv_heads
        out_THE = self._workspace.take((tokens, q_heads * head_dim), torch.float32)
        if tokens == 0:
            return out_THE
        key = ("plan", kv.group, kv.window, kv.granule_bytes, kv.kv_heads, head_dim, kv.dtype, share)
        runs = self._query_runs(head_dim, share)
        for batch in self._cache.get(step, key, lambda: plan(step, kv, runs, share)):
            rows = self._attend(q_THE, kv, batch, scale, softcap, sinks_H)
            out_THE.index_copy_(0, batch.token_N, rows)
        return out_THE

    def _attend(
        self, q_THE: Tensor, kv: KvLayer, batch: Batch, scale: float, softcap: float, sinks_H: Tensor | None
    ) -> Tensor:
        """One batch: finished rows [N, H·E]."""
        groups, width = kv.kv_heads, kv.head_dim
        q_IGME, share = _query_tiles(q_THE, batch, groups, scale)
        items, height = q_IGME.shape[0], q_IGME.shape[2]
        q_WGME = q_IGME if len(batch.counts) == 1 else q_IGME.index_select(0, batch.item_W)
        keys, values = self._load(kv, batch)
        s_XMK = torch.bmm(q_WGME.view(-1, height, width), keys.transpose(1, 2))
        if softcap:
            s_XMK.div_(softcap).tanh_().mul_(softcap)
        seen = s_XMK.view(-1, groups, height, KEY_TILE)[:, :, : batch.queries * share]
        seen.unflatten(2, (batch.queries, share)).add_(batch.bias)
        m_XM1 = s_XMK.amax(-1, keepdim=True).clamp_(min=NEVER)
        p_XMK = s_XMK.sub_(m_XM1).exp_()
        l_XM1 = p_XMK.sum(-1, keepdim=True)
        o_XME = torch.bmm(p_XMK, values)
        sinks_IM1 = None if sinks_H is None else _sink_tiles(sinks_H, batch, groups, height)
        o_IGME = _combine(o_XME, l_XM1, m_XM1, batch.counts, groups, sinks_IM1).view(items, groups, height, width)
        o_IGQSE = o_IGME[:, :, : batch.queries * share].unflatten(2, (batch.queries, share))
        rows = o_IGQSE.permute(0, 2, 1, 3, 4).reshape(items * batch.queries, -1)
        return rows if rows.shape[0] == batch.place_N.shape[0] else rows.index_select(0, batch.place_N)

    def _load(self, kv: KvLayer, batch: Batch) -> tuple[Tensor, Tensor]:
        """Keys and values [W·G, 128, E] fp32, unseen ones zero: views of one gathered copy."""
        rows = arena_rows(kv, batch.row_bytes)
        index = batch.load + layer_row(kv, batch.row_bytes)
        gathered = self._scratch(index.shape[0] * batch.row_bytes).view(rows.dtype).view(-1, rows.shape[1])
        torch.index_select(rows, 0, index, out=gathered)
        unit_NX = gathered.view(-1).view(torch.uint8).view(-1, head_bytes(kv))
        return self._numbers(unit_NX, kv, batch, keys=True), self._numbers(unit_NX, kv, batch, keys=False)

    def _numbers(self, unit_NX: Tensor, kv: KvLayer, batch: Batch, *, keys: bool) -> Tensor:
        """The keys or the values of gathered blocks, tokens first."""
        width, codes, scales = kv.head_dim, BLOCK_TOKENS * kv.head_dim * kv.dtype.itemsize, BLOCK_TOKENS * SCALE_BYTES
        start = 0 if keys else codes
        stored = unit_NX[:, start : start + codes].view(kv.dtype).unflatten(1, (-1, BLOCK_TOKENS if keys else width))
        scale = None
        if kv.dtype == torch.int8:
            start = 2 * codes + (0 if keys else scales)
            scale = unit_NX[:, start : start + scales].view(torch.float16).unsqueeze(-1)
        numbers = decode((stored.transpose(1, 2) if keys else stored).contiguous(), scale)
        return numbers.view(-1, width).index_fill_(0, batch.unseen_Z, 0.0).view(-1, KEY_TILE, width)

    def _scratch(self, nbytes: int) -> Tensor:
        """Bytes to gather into, the same every time: fresh pages would cost more than the copy."""
        if self._gathered.numel() < nbytes:
            self._gathered = torch.empty(nbytes, dtype=torch.uint8, device=self._workspace.device)
        return self._gathered[:nbytes]

    def _query_runs(self, head_dim: int, share: int) -> tuple[int, ...]:
        key = (head_dim, share)
        if key not in self._runs:
            self._runs[key] = matching_runs(head_dim, share, self._workspace.device)
        return self._runs[key]


def _query_tiles(q_THE: Tensor, batch: Batch, groups: int, scale: float) -> tuple[Tensor, int]:
    """Scaled query tiles [I, G, M, E], rows beyond queries * share zero; and share, the query heads of one KV head."""
    heads, width = q_THE.shape[1:]
    share = heads // groups
    q = (q_THE.index_select(0, batch.query_I) * scale).view(-1, batch.queries, groups, share, width)
    q = q.transpose(1, 2).contiguous().view(-1, groups, batch.queries * share, width)
    missing = tile_height(batch.queries, share) - batch.queries * share
    return (pad(q, (0, 0, 0, missing)) if missing else q), share


def _sink_tiles(sinks_H: Tensor, batch: Batch, groups: int, height: int) -> Tensor:
    """Each query tile's sinks, fp32 [I·G, M, 1]; rows beyond queries * share have none."""
    share = sinks_H.shape[0] // groups
    sinks_GM = sinks_H.float().view(groups, 1, share).expand(-1, batch.queries, -1).reshape(groups, -1)
    sinks_GM = pad(sinks_GM, (0, height - batch.queries * share), value=NEVER)
    return sinks_GM.repeat(batch.counts[0], 1).unsqueeze(-1)


def _combine(
    o_XME: Tensor, l_XM1: Tensor, m_XM1: Tensor, counts: tuple[int, ...], groups: int, sinks_IM1: Tensor | None
) -> Tensor:
    """Joins each item's tiles in ascending order: [I·G, M, E]."""
    sizes = [count * groups for count in counts]
    if len(sizes) == 1 and sinks_IM1 is None:
        return o_XME.div_(l_XM1)
    m_tiles, l_tiles, o_tiles = m_XM1.split(sizes), l_XM1.split(sizes), o_XME.split(sizes)
    top = m_tiles[0].clone()
    for m, size in zip(m_tiles[1:], sizes[1:], strict=True):
        torch.maximum(top[:size], m, out=top[:size])
    if sinks_IM1 is not None:
        torch.maximum(top, sinks_IM1, out=top)
    share = (m_tiles[0] - top).exp_()
    o_sum, l_sum = o_tiles[0].mul_(share), l_tiles[0].mul_(share)
    for m, weight, o, size in zip(m_tiles[1:], l_tiles[1:], o_tiles[1:], sizes[1:], strict=True):
        share = (m - top[:size]).exp_()
        l_sum[:size].add_(weight.mul_(share))
        o_sum[:size].add_(o.mul_(share))
    if sinks_IM1 is not None:
        l_sum.add_((sinks_IM1 - top).exp_())
    return o_sum.div_(l_sum)


def matching_runs(head_dim: int, share: int, device: torch.device) -> tuple[int, ...]:
    """The query runs whose tiles give each query the bits that a tile of one query gives it. A run of one always does."""
    generator = torch.Generator().manual_seed(0)
    longest = QUERY_RUNS[-1]
    q = torch.randn(2, longest, share, head_dim, generator=generator).to(device)
    keys, values = torch.randn(2, 2, KEY_TILE, head_dim, generator=generator).to(device)
    base = torch.cat([_products(q[:, i : i + 1], keys, values) for i in range(longest)], dim=1)
    alone = torch.cat([_products(q[:1, i : i + 1], keys[:1], values[:1]) for i in range(longest)], dim=1)
    if not torch.equal(base[:1], alone):
        raise RuntimeError("batched matrix products depend on the size of the batch in this build of torch")
    return tuple(
        run for run in QUERY_RUNS if run == 1 or torch.equal(_products(q[:, :run], keys, values), base[:, :run])
    )


def _products(q_BQSE: Tensor, keys_BKE: Tensor, values_BKE: Tensor) -> Tensor:
    """Both products of attention (without the softmax) for query tiles of this height, back as [B, queries, share, E]."""
    batch, queries, share, width = q_BQSE.shape
    q = q_BQSE.reshape(batch, queries * share, width)
    q = pad(q, (0, 0, 0, tile_height(queries, share) - queries * share))
    scores = torch.bmm(q, keys_BKE.transpose(1, 2))
    return torch.bmm(scores, values_BKE)[:, : queries * share].view(batch, queries, share, width)
