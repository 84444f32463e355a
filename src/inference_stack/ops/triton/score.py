"""`score`: raw log-probabilities, ranks and best alternatives, in two launches and without a sort.

    chunks   a program: one row, 2048 tokens     maximum, sum of exponentials, tokens ahead of the given one, its best K
    merge    a program: one row                  chunks in order ─▶ logprob, rank, the best K of all

The best are taken out one by one, highest first and the lower id among equals. Chunks are the same in any batch, so a row's bits
are its own. Floor: logits read once. A row whose `wanted` is negative is left out: NaN, rank 0, ids -1.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from inference_stack.ops.api import Scored
from inference_stack.ops.triton.kernel import Shipped, kernel, kernel_for_any
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace

CHUNK: Final = 2048
WARPS: Final = 4
NOWHERE = tl.constexpr(0x7FFFFFFF)


@kernel
def best_of(z: tl.tensor, id: tl.tensor, count: tl.tensor, K: tl.constexpr) -> tl.tensor:
    """(values [K], ids [K]) of the best `count`, best first; an id of NOWHERE is no candidate, and has -inf."""
    place = tl.arange(0, K)
    values, ids = tl.full((K,), float("-inf"), tl.float32), tl.full((K,), NOWHERE, tl.int32)
    for n in range(0, count):
        value = tl.max(z, 0)
        first = tl.min(tl.where(z == value, id, NOWHERE), 0)
        values, ids = tl.where(place == n, value, values), tl.where(place == n, first, ids)
        taken = id == first
        z, id = tl.where(taken, float("-inf"), z), tl.where(taken, NOWHERE, id)
    return values, ids


@kernel_for_any("vocab", "logits_stride", "chunks", "top")
def chunk_kernel(
    logits: tl.tensor, tokens: tl.tensor, wanted: tl.tensor, stats: tl.tensor, ahead: tl.tensor, values: tl.tensor,
    ids: tl.tensor, vocab: tl.tensor, logits_stride: tl.tensor, chunks: tl.tensor, top: tl.tensor, ALL: tl.constexpr,
    K: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """stats fp32 [S, chunks, 2], ahead int32 [S, chunks], values and ids [S, chunks, K]."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    asked = ALL
    if not ALL:
        asked = tl.load(wanted + row) >= 0
    if asked:
        token = chunk * BLOCK + tl.arange(0, BLOCK)
        inside = token < vocab
        z = tl.load(logits + row * logits_stride + token, mask=inside, other=float("-inf")).to(tl.float32)
        chosen = tl.load(tokens + row)
        mine = tl.load(logits + row * logits_stride + chosen).to(tl.float32)
        in_front = (z > mine) | ((z == mine) & (token < chosen))
        at = row * chunks + chunk
        tl.store(ahead + at, tl.sum((in_front & inside).to(tl.int32), 0))
        highest = tl.max(tl.where(z == z, z, float("inf")), 0)
        base = tl.where(highest == float("-inf"), 0.0, highest)
        tl.store(stats + at * 2, highest)
        tl.store(stats + at * 2 + 1, tl.sum(tl.exp(z - base), 0))
        best, found = best_of(tl.where(z == z, z, float("inf")), tl.where(inside, token, NOWHERE), top, K)
        tl.store(values + at * K + tl.arange(0, K), best)
        tl.store(ids + at * K + tl.arange(0, K), found)


@kernel_for_any("logits_stride", "chunks", "top")
def merge_kernel(
    logits: tl.tensor, tokens: tl.tensor, wanted: tl.tensor, stats: tl.tensor, ahead: tl.tensor, values: tl.tensor,
    ids: tl.tensor, logprob: tl.tensor, rank: tl.tensor, top_ids: tl.tensor, top_logprobs: tl.tensor,
    logits_stride: tl.tensor, chunks: tl.tensor, top: tl.tensor, ALL: tl.constexpr, K: tl.constexpr,
    CHUNKS: tl.constexpr,
) -> None:  # fmt: skip
    """The row's answer from its chunks'."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, K)
    out = row * top + place
    asked = ALL
    if not ALL:
        asked = tl.load(wanted + row) >= 0
    if asked:
        chunk = tl.arange(0, CHUNKS)
        inside = chunk < chunks
        at = row * chunks + chunk
        highest = tl.load(stats + at * 2, mask=inside, other=float("-inf"))
        parts = tl.load(stats + at * 2 + 1, mask=inside, other=0.0)
        most = tl.max(highest, 0)
        whole = tl.log(tl.sum(parts * tl.exp(highest - most), 0))
        mine = tl.load(logits + row * logits_stride + tl.load(tokens + row)).to(tl.float32)
        tl.store(logprob + row, (mine - most) - whole)
        tl.store(rank + row, (tl.sum(tl.load(ahead + at, mask=inside, other=0), 0) + 1).to(tl.int64))
        slot = tl.arange(0, CHUNKS * K)
        within = slot < chunks * K
        z = tl.load(values + row * chunks * K + slot, mask=within, other=float("-inf"))
        id = tl.load(ids + row * chunks * K + slot, mask=within, other=NOWHERE)
        best, found = best_of(z, id, top, K)
        tl.store(top_ids + out, found.to(tl.int64), mask=place < top)
        tl.store(top_logprobs + out, (best - most) - whole, mask=place < top)
    else:
        tl.store(logprob + row, float("nan"))
        tl.store(rank + row, tl.full((), 0, tl.int64))
        tl.store(top_ids + out, tl.full((K,), -1, tl.int64), mask=place < top)
        tl.store(top_logprobs + out, tl.full((K,), float("nan"), tl.float32), mask=place < top)


def score_rows(logits: Tensor, tokens_S: Tensor, top: int, wanted_S: Tensor | None = None) -> Scored:
    """What the raw distribution says about `tokens_S`; with `wanted_S` (int64) for its rows of 0 and more alone."""
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    rows, vocab = logits.shape
    device, top = logits.device, min(top, vocab)
    chunks, k = triton.cdiv(vocab, CHUNK), width_for(top)
    stats = torch.empty((rows, chunks, 2), dtype=torch.float32, device=device)
    ahead = torch.empty((rows, chunks), dtype=torch.int32, device=device)
    values = torch.empty((rows, chunks, k), dtype=torch.float32, device=device)
    ids = torch.empty((rows, chunks, k), dtype=torch.int32, device=device)
    out = Scored(
        logprob_S=torch.empty(rows, dtype=torch.float32, device=device),
        rank_S=torch.empty(rows, dtype=torch.int64, device=device),
        top_ids_SK=torch.empty((rows, top), dtype=torch.int64, device=device),
        top_logprobs_SK=torch.empty((rows, top), dtype=torch.float32, device=device),
    )
    if rows:
        wanted = tokens_S if wanted_S is None else wanted_S
        common = {"ALL": wanted_S is None, "K": k, "num_warps": WARPS}
        partial = (stats, ahead, values, ids)
        chunk_kernel[(rows, chunks)](
            logits, tokens_S, wanted, *partial, vocab, logits.stride(0), chunks, top, **common, BLOCK=CHUNK
        )  # fmt: skip
        merge_kernel[(rows,)](
            logits, tokens_S, wanted, *partial, out.logprob_S, out.rank_S, out.top_ids_SK, out.top_logprobs_SK,
            logits.stride(0), chunks, top, **common, CHUNKS=triton.next_power_of_2(chunks),
        )  # fmt: skip
    return out


def width_for(top: int) -> int:
    """Places kept for the best `top`: few different numbers, so that few kernels are compiled."""
    return 1 if top <= 1 else max(8, triton.next_power_of_2(top))


class Score:
    """`Ops.score`."""

    def __init__(self, workspace: Workspace, settings: TritonSettings) -> None:
        self._device = workspace.device

    def __call__(self, logits_SV: Tensor, tokens_S: Tensor, top: int) -> Scored:
        """Raw log-probabilities of `tokens_S` with `top` alternatives."""
        return score_rows(logits_SV, tokens_S.contiguous(), top)


PARTIAL: Final = {
    "logits": "*bf16", "tokens": "*i64", "wanted": "*i64", "stats": "*fp32", "ahead": "*i32", "values": "*fp32",
    "ids": "*i32", "logits_stride": "i32", "chunks": "i32", "top": "i32",
}  # fmt: skip
ANSWERS: Final = {"logprob": "*fp32", "rank": "*i64", "top_ids": "*i64", "top_logprobs": "*fp32"}

SHIPPED: Final = tuple(
    one
    for every in (False, True)
    for k in (1, 8, 32)
    for one in (
        Shipped(
            name=f"score chunks {k}{' all' * every}", kernel=chunk_kernel, signature=PARTIAL | {"vocab": "i32"},
            constants={"ALL": every, "K": k, "BLOCK": CHUNK}, aligned=("logits",), num_warps=WARPS,
        ),
        Shipped(
            name=f"score merge {k}{' all' * every}", kernel=merge_kernel, signature=PARTIAL | ANSWERS,
            constants={"ALL": every, "K": k, "CHUNKS": 128}, num_warps=WARPS,
        ),
    )
)  # fmt: skip
