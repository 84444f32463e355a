"""`sample`: one token per row as the reference defines it, without a sort, a host read or a copy of the logits.

    lists, where there are any   ─▶ marks, bias            sampler_logits, one launch a list
    filters, where any row has   ─▶ the row's cut          sampler_filters, nine launches
    draw    a program: one row, 2048 tokens                score = z / temperature + Gumbel noise, float64 ─▶ its best
    choose  a program: one row                             the best of the programs' ─▶ token, finite

Programs split the vocabulary alike whatever the batch is, and the maximum has no order: a row's token is its own. A row that is
not finite gets token 0. Floor: logits read once, S · V · 2 bytes; noise costs two float64 logarithms a token of random rows.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from inference_stack.ops.api import Sampled, SampleInputs
from inference_stack.ops.triton.kernel import Shipped, kernel_for_any
from inference_stack.ops.triton.philox import gumbel_of, words_of
from inference_stack.ops.triton.sampler_filters import CHUNK, LISTS, find_cuts, parts_for, stays
from inference_stack.ops.triton.sampler_logits import adjusted, changes
from inference_stack.ops.triton.score import score_rows
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace

WARPS: Final = 4


@kernel_for_any("vocab", "logits_stride", "words", "chunks")
def draw_kernel(
    logits: tl.tensor, values: tl.tensor, ids: tl.tensor, broken: tl.tensor, temperature: tl.tensor, seed: tl.tensor,
    position: tl.tensor, choice: tl.tensor, distances: tl.tensor, cuts: tl.tensor, ties: tl.tensor, vocab: tl.tensor,
    logits_stride: tl.tensor, chunks: tl.tensor, allowed: tl.tensor, words: tl.tensor, bias: tl.tensor,
    marks: tl.tensor, repetition: tl.tensor, presence: tl.tensor, frequency: tl.tensor, ALLOWED: tl.constexpr,
    BIASED: tl.constexpr, MARKED: tl.constexpr, RANDOM: tl.constexpr, FILTERED: tl.constexpr, BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:  # fmt: skip
    """The best token of a row's chunk, its score, and whether a logit of it is NaN or +inf; [S, chunks] each."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = token < vocab
    raw = tl.load(logits + row * logits_stride + token, mask=inside, other=float("-inf")).to(tl.float32)
    strange = tl.max(((raw != raw) | (raw == float("inf"))).to(tl.int32), 0)
    z = adjusted(raw, row, token, inside, vocab, allowed, words, bias, marks, repetition, presence, frequency,
                 ALLOWED, BIASED, MARKED)  # fmt: skip
    score = z.to(tl.float64) if RANDOM else z
    if RANDOM:
        heat = tl.load(temperature + row).to(tl.float64)
        if heat > 0:
            noise = gumbel_of(words_of(chunk * BLOCK, tl.load(seed + row), tl.load(position + row), tl.load(choice + row),
                                       BLOCK))  # fmt: skip
            score = score * (1.0 / heat) + noise
        if FILTERED:
            kept = stays(distances, cuts, ties, row, chunk, token, inside, vocab, chunks, PARTS)
            score = tl.where(kept, score, float("-inf"))
    best = tl.max(score, 0)
    first = tl.min(tl.where((score == best) & inside, token, 0x7FFFFFFF), 0)
    tl.store(values + row * chunks + chunk, best)
    tl.store(ids + row * chunks + chunk, first)
    tl.store(broken + row * chunks + chunk, strange)


@kernel_for_any("chunks")
def choose_kernel(
    values: tl.tensor, ids: tl.tensor, broken: tl.tensor, tokens: tl.tensor, finite: tl.tensor, chunks: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """The best of the chunks' best, the lowest id among equals."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, BLOCK)
    inside = chunk < chunks
    value = tl.load(values + row * chunks + chunk, mask=inside, other=float("-inf"))
    id = tl.load(ids + row * chunks + chunk, mask=inside, other=0x7FFFFFFF)
    strange = tl.max(tl.load(broken + row * chunks + chunk, mask=inside, other=0), 0)
    best = tl.max(value, 0)
    token = tl.min(tl.where(value == best, id, 0x7FFFFFFF), 0)
    tl.store(tokens + row, tl.where(strange > 0, 0, token).to(tl.int64))
    tl.store(finite + row, (strange == 0).to(tl.uint8))


class Sampler:
    """`Ops.sample`."""

    def __init__(self, workspace: Workspace, settings: TritonSettings) -> None:
        self._device = workspace.device

    def __call__(self, logits_SV: Tensor, inputs: SampleInputs) -> Sampled:
        """One token per row, with raw log-probabilities where rows ask for them."""
        logits_SV = logits_SV if logits_SV.stride(1) == 1 else logits_SV.contiguous()
        rows, device = logits_SV.shape[0], logits_SV.device
        tokens_S = torch.empty(rows, dtype=torch.int64, device=device)
        finite_S = torch.empty(rows, dtype=torch.uint8, device=device)
        if rows:
            _choose(logits_SV, inputs, tokens_S, finite_S)
        if inputs.max_top < 0:
            return Sampled(tokens_S=tokens_S, finite_S=finite_S.view(torch.bool))
        scored = score_rows(logits_SV, tokens_S, inputs.max_top, inputs.top_S)
        return Sampled(
            tokens_S=tokens_S,
            finite_S=finite_S.view(torch.bool),
            logprob_S=scored.logprob_S,
            rank_S=scored.rank_S,
            top_ids_SK=scored.top_ids_SK,
            top_logprobs_SK=scored.top_logprobs_SK,
        )


def _choose(logits: Tensor, inputs: SampleInputs, tokens: Tensor, finite: Tensor) -> None:
    rows, vocab = logits.shape
    changed = changes(logits, inputs)
    filtered = inputs.any_random and inputs.any_filtered
    distances = cuts = ties = tokens
    if filtered:
        found = find_cuts(logits, inputs, changed, CHUNK)
        distances, cuts, ties = found.distances, found.cuts, found.ties
    chunks = triton.cdiv(vocab, CHUNK)
    score_type = torch.float64 if inputs.any_random else torch.float32
    values = torch.empty((rows, chunks), dtype=score_type, device=logits.device)
    ids, broken = (torch.empty((rows, chunks), dtype=torch.int32, device=logits.device) for _ in range(2))
    draw_kernel[(rows, chunks)](
        logits, values, ids, broken, inputs.temperature_S, inputs.seed_S, inputs.position_S, inputs.choice_S,
        distances, cuts, ties, vocab, logits.stride(0), chunks, *changed.arguments, **changed.constants,
        RANDOM=inputs.any_random, FILTERED=filtered, BLOCK=CHUNK, PARTS=parts_for(chunks), num_warps=WARPS,
    )  # fmt: skip
    choose_kernel[(rows,)](
        values, ids, broken, tokens, finite, chunks, triton.next_power_of_2(chunks), num_warps=1
    )  # fmt: skip


DRAWN: Final = {
    "logits": "*bf16", "ids": "*i32", "broken": "*i32", "temperature": "*fp32", "seed": "*i64", "position": "*i64",
    "choice": "*i64", "distances": "*i32", "cuts": "*i32", "ties": "*i32", "vocab": "i32", "logits_stride": "i32",
    "chunks": "i32",
}  # fmt: skip


def _shipped_draw(random: bool, filtered: bool, changed: bool) -> Shipped:
    constants: dict[str, Any] = {name: changed for name in ("ALLOWED", "BIASED", "MARKED")}
    return Shipped(
        name=f"draw{' random' * random}{' filtered' * filtered}{' changed' * changed}",
        kernel=draw_kernel,
        signature=DRAWN | LISTS | {"values": "*fp64" if random else "*fp32"},
        constants=constants | {"RANDOM": random, "FILTERED": filtered, "BLOCK": CHUNK, "PARTS": parts_for(1)},
        aligned=("logits",),
        num_warps=WARPS,
    )


def _shipped_choose(random: bool, block: int) -> Shipped:
    return Shipped(
        name=f"choose{' random' * random} {block}",
        kernel=choose_kernel,
        signature={
            "values": "*fp64" if random else "*fp32", "ids": "*i32", "broken": "*i32", "tokens": "*i64",
            "finite": "*u8", "chunks": "i32",
        },
        constants={"BLOCK": block},
        num_warps=1,
    )  # fmt: skip


SHIPPED: Final = (
    *(
        _shipped_draw(random, filtered, changed)
        for random, filtered in ((False, False), (True, False), (True, True))
        for changed in (False, True)
    ),
    *(_shipped_choose(random, block) for random in (False, True) for block in (32, 64, 128)),
)
