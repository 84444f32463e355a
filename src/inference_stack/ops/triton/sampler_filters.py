"""top-k, top-p and min-p without a sort: each row's cut in the order of the reference, found digit by digit over the numbers' bits.

    peaks      a program: one row, one chunk     the chunk's best logit; clears the row's tables
    distances  likewise                          bits of |y|, y = (z - max z) / temperature ≤ 0: an integer order; groups' totals
    narrow     likewise, three for top-k,        the interval's tokens or weights into 1024 bins; the next launch finds the bin
               three for top-p                   that holds the cut, and goes on inside it: 2³⁰ distances are 1024³ bins
    cut        likewise                          min-p; how many tokens of the chunk lie at the cut, for ties go by id

Nine launches whatever the rows ask for; a row that asks for nothing leaves each at once. Totals are integers, weights of 2⁻⁴⁴:
neither atomics nor the split change them. The reference adds float64, which can move the nucleus by a token at its edge.
Floor: logits read twice, distances written once and read eight times. From arithmetic, not measured: a row of 128k tokens on an
H200 takes 40 to 50 µs, nine launches of 3.5 µs with 1 to 2 µs of work in each; 256 rows 0.5 to 0.7 ms, 30 to 150 µs in each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from inference_stack.ops.api import SampleInputs
from inference_stack.ops.triton.kernel import Shipped, kernel, kernel_for_any
from inference_stack.ops.triton.sampler_logits import Changes, adjusted

CHUNK: Final = 2048
"""Tokens of one program, and at most so many: a chunk's tokens are counted in 12 bits."""
WARPS: Final = 8
PASSES: Final = 3
PROGRAMS: Final = 528
"""Programs that an H200 runs at once: past them, one takes several chunks, up to MOST_SPAN, and finds its interval once."""
MOST_SPAN: Final = 8

UNIT = tl.constexpr(17592186044416.0)
"""2⁴⁴: a row of 2¹⁸ tokens of weight 1 stays below 2⁶³."""
FARTHEST = tl.constexpr(0x41FFFFFF)
"""The distance of all that is 32 or more away: it weighs nothing, and noise, between -3.2 and 22.9, never lifts it to the best."""
GROUPS = tl.constexpr(5)
"""Distances below 2, then those from 2, 4, 8 and 16: 2³⁰ numbers, then 2²³ each."""
BINS = tl.constexpr(1024)
BIN_BITS = tl.constexpr(10)

# What a row needs between launches, int64 [ROW_WORDS]: cleared, then added to; a pass's state is written by one program.
COUNTS = tl.constexpr(0)
WEIGHTS = tl.constexpr(8)
NEARER = tl.constexpr(16)
"""Weight of all that is nearer than the last interval of top-k."""
STATES = tl.constexpr(32)
"""8 words a pass: low, bits, below, target; of top-p's first also top-k's cut, and how many of its ties stay."""
TABLES = tl.constexpr(128)
ROW_WORDS = tl.constexpr(6272)
"""128 words and 1024 a pass."""


@kernel
def weight_of(distance: tl.tensor) -> tl.tensor:
    """exp(-|y|) as an integer of 2⁻⁴⁴."""
    y = -tl.minimum(distance, FARTHEST).to(tl.float32, bitcast=True)
    return (tl.exp(y) * UNIT).to(tl.int64)


@kernel
def asked(
    row: tl.tensor, temperature: tl.tensor, top_k: tl.tensor, top_p: tl.tensor, min_p: tl.tensor, vocab: tl.tensor
) -> tl.tensor:
    """Whether the row is filtered by each of top-k, top-p and min-p."""
    random = tl.load(temperature + row) > 0
    k = tl.load(top_k + row)
    return random & (k > 0) & (k < vocab), random & (tl.load(top_p + row) < 1.0), random & (tl.load(min_p + row) > 0.0)


@kernel
def grouped(totals: tl.tensor, target: tl.tensor) -> tl.tensor:
    """(low, bits, below): the group in which totals reach `target`, as the interval low … low + 2^bits - 1."""
    place = tl.arange(0, 8)
    total = tl.load(totals + place)
    group = tl.minimum(tl.sum((tl.cumsum(total, 0) < target).to(tl.int32), 0), GROUPS - 1)
    below = tl.sum(tl.where(place < group, total, 0), 0)
    return tl.where(group > 0, (group + 127) << 23, 0), tl.where(group > 0, 23, 30), below


@kernel
def narrowed(row: tl.tensor, turn: tl.tensor) -> tl.tensor:
    """(low, bits, below, target) after pass `turn`: the bin in which totals reach its target."""
    state = row + STATES + turn * 8
    low, bits = tl.load(state).to(tl.int32), tl.load(state + 1).to(tl.int32)
    below, target = tl.load(state + 2), tl.load(state + 3)
    place = tl.arange(0, BINS)
    total = tl.load(row + TABLES + turn * BINS + place)
    shift = tl.maximum(bits - BIN_BITS, 0)
    first = tl.sum((tl.cumsum(total, 0) + below < target).to(tl.int32), 0)
    first = tl.minimum(first, (1 << (bits - shift)) - 1)
    below += tl.sum(tl.where(place < first, total, 0), 0)
    return low + (first << shift), shift, below, target


@kernel
def nucleus_target(row: tl.tensor, p: tl.tensor, by_k: tl.tensor, first: tl.tensor, vocab: tl.tensor) -> tl.tensor:
    """The weight that top-p keeps of what top-k keeps. The `first` program notes top-k's cut."""
    place = tl.arange(0, BINS)
    cut, many = tl.full((), FARTHEST, tl.int32), tl.full((), 0, tl.int64) + vocab
    if by_k:
        low = tl.load(row + STATES + 16).to(tl.int32)
        cut, _bits, below, k = narrowed(row, 2)
        held = tl.load(row + TABLES + 2 * BINS + place)
        whole = tl.sum(tl.where(place < cut - low, held * weight_of(low + place), 0), 0)
        many = k - below
        whole += tl.load(row + NEARER) + many * weight_of(cut)
    else:
        whole = tl.sum(tl.load(row + WEIGHTS + tl.arange(0, 8)), 0)
    tl.store(row + STATES + 28, cut.to(tl.int64), mask=first)
    tl.store(row + STATES + 29, many, mask=first)
    return tl.maximum(tl.ceil(p * whole.to(tl.float64)).to(tl.int64), 1)


@kernel_for_any("vocab", "logits_stride", "chunks", "words")
def peak_kernel(
    logits: tl.tensor, distances: tl.tensor, peaks: tl.tensor, scratch: tl.tensor, temperature: tl.tensor,
    top_k: tl.tensor, top_p: tl.tensor, min_p: tl.tensor, vocab: tl.tensor, logits_stride: tl.tensor,
    chunks: tl.tensor, allowed: tl.tensor, words: tl.tensor, bias: tl.tensor, marks: tl.tensor,
    repetition: tl.tensor, presence: tl.tensor, frequency: tl.tensor, ALLOWED: tl.constexpr, BIASED: tl.constexpr,
    MARKED: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """peaks fp32 [S, chunks]; changed logits go to `distances` as they are."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    by_k, by_p, by_best = asked(row, temperature, top_k, top_p, min_p, vocab)
    if by_k | by_p | by_best:
        token = chunk * BLOCK + tl.arange(0, BLOCK)
        inside = token < vocab
        raw = tl.load(logits + row * logits_stride + token, mask=inside, other=float("-inf")).to(tl.float32)
        z = adjusted(raw, row, token, inside, vocab, allowed, words, bias, marks, repetition, presence, frequency,
                     ALLOWED, BIASED, MARKED)  # fmt: skip
        if ALLOWED or BIASED or MARKED:
            tl.store(distances + row * vocab + token, z.to(tl.int32, bitcast=True), mask=inside)
        tl.store(peaks + row * chunks + chunk, tl.max(z, 0))
        for start in range(chunk * BLOCK, ROW_WORDS, chunks * BLOCK):
            word = start + tl.arange(0, BLOCK)
            tl.store(scratch + row * ROW_WORDS + word, tl.zeros((BLOCK,), tl.int64), mask=word < ROW_WORDS)


@kernel_for_any("vocab", "logits_stride", "chunks")
def distance_kernel(
    logits: tl.tensor, distances: tl.tensor, peaks: tl.tensor, scratch: tl.tensor, temperature: tl.tensor,
    top_k: tl.tensor, top_p: tl.tensor, min_p: tl.tensor, vocab: tl.tensor, logits_stride: tl.tensor,
    chunks: tl.tensor, CHANGED: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
) -> None:  # fmt: skip
    """distances int32 [S, V]; each group's tokens and weight are added to the row's."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    by_k, by_p, by_best = asked(row, temperature, top_k, top_p, min_p, vocab)
    if by_k | by_p | by_best:
        part, token = tl.arange(0, PARTS), chunk * BLOCK + tl.arange(0, BLOCK)
        inside = token < vocab
        top = tl.max(tl.load(peaks + row * chunks + part, mask=part < chunks, other=float("-inf")), 0)
        top = tl.where(top == float("-inf"), 0.0, top)
        at = distances + row * vocab + token
        if CHANGED:
            z = tl.load(at, mask=inside, other=0).to(tl.float32, bitcast=True)
        else:
            z = tl.load(logits + row * logits_stride + token, mask=inside, other=0.0).to(tl.float32)
        y = tl.div_rn(z - top, tl.zeros_like(z) + tl.load(temperature + row).to(tl.float32))
        distance = tl.minimum(y.to(tl.int32, bitcast=True) & 0x7FFFFFFF, FARTHEST)
        tl.store(at, distance, mask=inside)
        group = tl.maximum((distance >> 23) - 127, 0)
        place, home = tl.arange(0, 8), scratch + row * ROW_WORDS
        if by_k:
            packed = tl.sum(tl.where(inside, tl.full((BLOCK,), 1, tl.int64) << (group * 12).to(tl.int64), 0), 0)
            count = tl.where(place < GROUPS, (packed >> (place * 12).to(tl.int64)) & 0xFFF, 0)
            tl.atomic_add(home + COUNTS + place, count, mask=count > 0, sem="relaxed")
        if by_p:
            weight = tl.where(inside, weight_of(distance), 0)
            total = tl.zeros((8,), tl.int64)
            for one in tl.static_range(GROUPS):
                total = tl.where(place == one, tl.sum(tl.where(group == one, weight, 0), 0), total)
            tl.atomic_add(home + WEIGHTS + place, total, mask=total > 0, sem="relaxed")


@kernel
def add_to_bins(
    bins: tl.tensor, distance: tl.tensor, low: tl.tensor, bits: tl.tensor, WEIGHED: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """Adds a chunk's tokens, or their weights, to the bins of an interval."""
    away = distance - low
    active = (away >> bits) == 0
    bin = away >> tl.maximum(bits - BIN_BITS, 0)
    nearest, last = tl.min(tl.where(active, bin, BINS), 0), tl.max(tl.where(active, bin, -1), 0)
    if nearest <= last:
        value = weight_of(distance) if WEIGHED else tl.full((BLOCK,), 1, tl.int64)
        if nearest == last:  # ties, and all that is close to them: one addition instead of many to one place
            tl.atomic_add(bins + nearest, tl.sum(tl.where(active, value, 0), 0), sem="relaxed")
        else:
            tl.atomic_add(bins + bin, value, mask=active, sem="relaxed")


@kernel_for_any("vocab", "step", "span")
def narrow_kernel(
    distances: tl.tensor, scratch: tl.tensor, temperature: tl.tensor, top_k: tl.tensor, top_p: tl.tensor,
    min_p: tl.tensor, vocab: tl.tensor, span: tl.tensor, step: tl.tensor, WEIGHED: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Finds the interval that the last launch's totals tell, and adds its tokens, or their weights, to this pass's bins."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    by_k, by_p, _ = asked(row, temperature, top_k, top_p, min_p, vocab)
    turn = step + 3 if WEIGHED else step + 0
    if by_p if WEIGHED else by_k:
        home, at = scratch + row * ROW_WORDS, distances + row * vocab
        first, end = part * span * BLOCK, tl.minimum((part + 1) * span * BLOCK, vocab)
        token = first + tl.arange(0, BLOCK)
        distance = tl.load(at + token, mask=token < end, other=0x7FFFFFFF)
        if step > 0:
            low, bits, below, target = narrowed(home, turn - 1)
        elif WEIGHED:
            target = nucleus_target(home, tl.load(top_p + row).to(tl.float64), by_k, part == 0, vocab)
            low, bits, below = grouped(home + WEIGHTS, target)
        else:
            target = tl.load(top_k + row)
            low, bits, below = grouped(home + COUNTS, target)
        if part == 0:
            state = home + STATES + turn * 8
            tl.store(state, low.to(tl.int64))
            tl.store(state + 1, bits.to(tl.int64))
            tl.store(state + 2, below)
            tl.store(state + 3, target)
        bins = home + TABLES + turn * BINS
        for _start in range(first, end, BLOCK):
            token += BLOCK
            following = tl.load(at + token, mask=token < end, other=0x7FFFFFFF)
            add_to_bins(bins, distance, low, bits, WEIGHED, BLOCK)
            if not WEIGHED and by_p & (step == 2):
                nearer = tl.sum(tl.where(distance < low, weight_of(distance), 0), 0)
                tl.atomic_add(home + NEARER, nearer, sem="relaxed")
            distance = following


@kernel_for_any("vocab", "span", "chunks")
def cut_kernel(
    distances: tl.tensor, cuts: tl.tensor, ties: tl.tensor, scratch: tl.tensor, temperature: tl.tensor,
    top_k: tl.tensor, top_p: tl.tensor, min_p: tl.tensor, vocab: tl.tensor, span: tl.tensor, chunks: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """cuts[row] = (farthest distance, how many stay there); (-1, 0) where nothing is filtered. ties int32 [S, chunks]."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    by_k, by_p, by_best = asked(row, temperature, top_k, top_p, min_p, vocab)
    cut, many = tl.full((), -1, tl.int32), tl.full((), 0, tl.int64)
    if by_k | by_p | by_best:
        home, at = scratch + row * ROW_WORDS, distances + row * vocab
        first, end = part * span * BLOCK, tl.minimum((part + 1) * span * BLOCK, vocab)
        token = first + tl.arange(0, BLOCK)
        distance = tl.load(at + token, mask=token < end, other=0x7FFFFFFF)
        cut, many = tl.full((), FARTHEST, tl.int32), many + vocab
        if by_p:
            cut, many = tl.load(home + STATES + 28).to(tl.int32), tl.load(home + STATES + 29)
            nucleus, _bits, below, target = narrowed(home, 5)
            weight = tl.maximum(weight_of(nucleus), 1)
            needed = tl.maximum((target - below + weight - 1) // weight, 1)
            many = tl.where(nucleus == cut, tl.minimum(many, needed), tl.where(nucleus < cut, needed, many))
            cut = tl.minimum(nucleus, cut)
        elif by_k:
            cut, _bits, below, target = narrowed(home, 2)
            many = target - below
        if by_best:
            bound = -tl.log(tl.load(min_p + row).to(tl.float64))
            near = tl.maximum(bound, 0.0).to(tl.float32)
            far = near.to(tl.int32, bitcast=True) - (near.to(tl.float64) > bound).to(tl.int32)
            far = tl.maximum(far, 0)
            many = tl.where(far < cut, tl.full((), 0, tl.int64) + vocab, many)
            cut = tl.minimum(cut, far)
        for start in range(first, end, BLOCK):
            token += BLOCK
            following = tl.load(at + token, mask=token < end, other=0x7FFFFFFF)
            tl.store(ties + row * chunks + start // BLOCK, tl.sum((distance == cut).to(tl.int32), 0))
            distance = following
    if part == 0:
        tl.store(cuts + row * 2, cut)
        tl.store(cuts + row * 2 + 1, many.to(tl.int32))


@kernel
def stays(
    distances: tl.tensor, cuts: tl.tensor, ties: tl.tensor, row: tl.tensor, chunk: tl.tensor, token: tl.tensor,
    inside: tl.tensor, vocab: tl.tensor, chunks: tl.tensor, PARTS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Which of a chunk's tokens the row's cut keeps: of ties the first, in the order of ids."""
    cut, many = tl.load(cuts + row * 2), tl.load(cuts + row * 2 + 1)
    kept = inside
    if cut >= 0:
        part = tl.arange(0, PARTS)
        before = tl.sum(tl.load(ties + row * chunks + part, mask=part < chunk, other=0), 0)
        distance = tl.load(distances + row * vocab + token, mask=inside, other=0x7FFFFFFF)
        tie = distance == cut
        kept = (distance < cut) | (tie & (before + tl.cumsum(tie.to(tl.int32), 0) <= many))
    return kept


@dataclass(frozen=True, slots=True)
class Cuts:
    """What `stays` reads: distances int32 [S, V], cuts int32 [S, 2], ties int32 [S, chunks]; unfiltered rows' are not written."""

    distances: Tensor
    cuts: Tensor
    ties: Tensor


def parts_for(chunks: int) -> int:
    """Places for a row's chunks: few different numbers, so that few kernels are compiled."""
    return max(128, triton.next_power_of_2(chunks))


def find_cuts(logits_SV: Tensor, inputs: SampleInputs, changed: Changes, chunk: int) -> Cuts:
    """Every row's cut, for chunks of `chunk` tokens."""
    (rows, vocab), device = logits_SV.shape, logits_SV.device
    chunks = triton.cdiv(vocab, chunk)
    grid, stride = (rows, chunks), logits_SV.stride(0)
    distances = torch.empty((rows, vocab), dtype=torch.int32, device=device)
    cuts = torch.empty((rows, 2), dtype=torch.int32, device=device)
    ties = torch.empty((rows, chunks), dtype=torch.int32, device=device)
    peaks = torch.empty((rows, chunks), dtype=torch.float32, device=device)
    scratch = torch.empty((rows, ROW_WORDS.value), dtype=torch.int64, device=device)
    filters = (inputs.temperature_S, inputs.top_k_S, inputs.top_p_S, inputs.min_p_S)
    common: dict[str, Any] = {"BLOCK": chunk, "num_warps": WARPS}
    peak_kernel[grid](
        logits_SV, distances, peaks, scratch, *filters, vocab, stride, chunks, *changed.arguments, **changed.constants,
        **common,
    )  # fmt: skip
    distance_kernel[grid](
        logits_SV, distances, peaks, scratch, *filters, vocab, stride, chunks, CHANGED=any(changed.constants.values()),
        PARTS=parts_for(chunks), **common,
    )  # fmt: skip
    span = min(max(rows * chunks // PROGRAMS, 1), MOST_SPAN)
    grid = (rows, triton.cdiv(chunks, span))
    for weighed in (False, True):
        for step in range(PASSES):
            narrow_kernel[grid](distances, scratch, *filters, vocab, span, step, WEIGHED=weighed, **common)
    cut_kernel[grid](distances, cuts, ties, scratch, *filters, vocab, span, chunks, **common)
    return Cuts(distances, cuts, ties)


FILTERS: Final = {
    "distances": "*i32", "scratch": "*i64", "temperature": "*fp32", "top_k": "*i64", "top_p": "*fp32",
    "min_p": "*fp32", "vocab": "i32",
}  # fmt: skip
READ: Final = {"logits": "*bf16", "peaks": "*fp32", "logits_stride": "i32", "chunks": "i32"}
LISTS: Final = {
    "allowed": "*i32", "words": "i32", "bias": "*fp32", "marks": "*i32", "repetition": "*fp32", "presence": "*fp32",
    "frequency": "*fp32",
}  # fmt: skip


def _shipped(name: str, kernel: Any, signature: dict[str, str], **constants: Any) -> Shipped:
    return Shipped(
        name=name,
        kernel=kernel,
        signature=FILTERS | signature,
        constants=constants | {"BLOCK": CHUNK},
        aligned=tuple(name for name in ("logits",) if name in signature),
        num_warps=WARPS,
    )


SHIPPED: Final = (
    *(
        _shipped(f"filter peaks{' changed' * on}", peak_kernel, READ | LISTS, ALLOWED=on, BIASED=on, MARKED=on)
        for on in (False, True)
    ),
    *(
        _shipped(f"filter distances{' changed' * on}", distance_kernel, READ, CHANGED=on, PARTS=parts_for(1))
        for on in (False, True)
    ),
    *(
        _shipped(f"filter narrow{' weighed' * weighed}", narrow_kernel, {"span": "i32", "step": "i32"}, WEIGHED=weighed)
        for weighed in (False, True)
    ),
    _shipped("filter cut", cut_kernel, {"cuts": "*i32", "ties": "*i32", "span": "i32", "chunks": "i32"}),
)
