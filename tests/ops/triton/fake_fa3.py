"""What tokenspeed-fa3 documents of its attention over paged KV, in torch: same arguments, same checks, same masks."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

HEADS = (64, 128, 192, 256)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    cache_seqlens: Tensor | None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    max_seqlen_q: int | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 0,
    sinks: Tensor | None = None,
) -> Tensor:
    """o [T, H, E]. Queries of a row are its last tokens; a row's keys are its pages' first `cache_seqlens` tokens."""
    assert (
        cache_seqlens is not None and page_table is not None and cu_seqlens_q is not None and max_seqlen_q is not None
    )
    _check(q, k_cache, v_cache, cache_seqlens, page_table, cu_seqlens_q, sinks)
    assert k is None and v is None and softcap == 0 and causal
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    out = torch.zeros(q.shape, dtype=q.dtype)
    bounds = cu_seqlens_q.tolist()
    for row, (start, stop) in enumerate(pairwise(bounds)):
        assert stop - start <= max_seqlen_q
        known = int(cache_seqlens[row])
        queries = q[start:stop].float()
        keys, values = (_gathered(cache, page_table[row], known) for cache in (k_cache, v_cache))
        group = q.shape[1] // keys.shape[1]
        keys, values = (part.float().repeat_interleave(group, 1) for part in (keys, values))
        scores = torch.einsum("qhe,khe->hqk", queries, keys) * scale
        place = torch.arange(stop - start)[:, None] + known - (stop - start)
        at = torch.arange(known)[None]
        seen = at <= place
        if window_size != (-1, -1):
            seen &= (at >= place - window_size[0]) & (at <= place + window_size[1])
        scores = scores.masked_fill(~seen, -torch.inf)
        if sinks is not None:
            column = sinks.float()[:, None, None].expand(-1, stop - start, 1)
            scores = torch.cat([scores, column], -1)
        weights = scores.softmax(-1).nan_to_num(0.0)[..., :known]
        clean = torch.where(seen.any(0)[:, None, None], values, 0.0)
        out[start:stop] = torch.einsum("hqk,khe->qhe", weights, clean).to(q.dtype)
    return out


def _gathered(cache: Tensor, pages: Tensor, known: int) -> Tensor:
    """The first `known` tokens behind a row's pages [known, G, E]."""
    size = cache.shape[1]
    at = torch.arange(known)
    return cache[pages.long()[at // size], at % size]


def _check(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    page_table: Tensor,
    cu_seqlens_q: Tensor,
    sinks: Tensor | None,
) -> None:
    rows = cu_seqlens_q.shape[0] - 1
    if q.dtype not in (torch.float16, torch.bfloat16) or not q.dtype == k_cache.dtype == v_cache.dtype:
        raise RuntimeError("query, key and value must have the same 16-bit dtype")
    for name, tensor in (("page_table", page_table), ("cache_seqlens", cache_seqlens), ("cu_seqlens_q", cu_seqlens_q)):
        if tensor.dtype != torch.int32:
            raise RuntimeError(f"{name} must have dtype int32")
    if q.ndim != 3 or q.shape[-1] not in HEADS or k_cache.shape != v_cache.shape or q.shape[1] % k_cache.shape[2]:
        raise RuntimeError("shapes do not fit")
    if cache_seqlens.shape != (rows,) or page_table.shape[0] != rows or page_table.stride(-1) != 1:
        raise RuntimeError("page_table and cache_seqlens have a row for each of the batch")
    for cache in (k_cache, v_cache):
        if cache.stride(-1) != 1 or cache.data_ptr() % 16 or any(stride % 8 for stride in cache.stride()[:-1]):
            raise RuntimeError("tokens must be contiguous and aligned")
    if sinks is not None and (sinks.dtype != torch.bfloat16 or sinks.shape != (q.shape[1],)):
        raise RuntimeError("sinks must have dtype bfloat16, one for each head")
