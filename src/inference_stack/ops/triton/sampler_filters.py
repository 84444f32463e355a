"""top-k, top-p and min-p without a sort: each row's cut in the order of the reference, found by search over the numbers' bits.

    a program: one row      distance = bits of |y|, y = (z - max z) / temperature ≤ 0: the best token has 0, an integer order

The smallest distance whose tokens, with all nearer ones, number k, or weigh p of the whole, is found by bisection; ids then
split its ties. Weights are summed as integers of 2⁻⁴⁴, which no order of summation changes, where the reference adds float64:
that alone can move the nucleus by a token at its edge. Floor: logits read twice, 4 V bytes for each of up to 31 passes a filter.
"""

from __future__ import annotations

import triton.language as tl

from inference_stack.ops.triton.kernel import kernel, kernel_for_any
from inference_stack.ops.triton.sampler_logits import adjusted

UNIT = tl.constexpr(17592186044416.0)
"""2⁴⁴: a row of 2¹⁸ tokens of weight 1 stays below 2⁶³."""
FARTHEST = tl.constexpr(0x7F800000)
"""The distance of -inf."""


@kernel
def weight_of(distance: tl.tensor) -> tl.tensor:
    """exp(-|y|) as an integer of 2⁻⁴⁴."""
    y = -tl.minimum(distance, FARTHEST).to(tl.float32, bitcast=True)
    return (tl.exp(y) * UNIT).to(tl.int64)


@kernel
def reached(
    at: tl.tensor, vocab: tl.tensor, limit: tl.tensor, only: tl.tensor, KIND: tl.constexpr, BLOCK: tl.constexpr
) -> tl.tensor:
    """What tokens up to `limit` amount to. KIND 0: their number by distance; 1: their weight; 2: of distance `only`, by id."""
    total = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        distance = tl.load(at + token, mask=token < vocab, other=0x7FFFFFFF)
        if KIND == 0:
            total += (distance <= limit).to(tl.int64)
        elif KIND == 1:
            total += tl.where(distance <= limit, weight_of(distance), 0)
        else:
            total += ((distance == only) & (token <= limit)).to(tl.int64)
    return tl.sum(total, 0)


@kernel
def search(
    at: tl.tensor, vocab: tl.tensor, target: tl.tensor, high: tl.tensor, only: tl.tensor, KIND: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The smallest limit at which `reached` is at least `target`; `high` if none below is."""
    low = high * 0
    while low < high:
        middle = low + (high - low) // 2
        enough = reached(at, vocab, middle, only, KIND, BLOCK) >= target
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return low


@kernel_for_any("vocab", "logits_stride", "words")
def filter_kernel(
    logits: tl.tensor, distances: tl.tensor, cuts: tl.tensor, temperature: tl.tensor, top_k: tl.tensor,
    top_p: tl.tensor, min_p: tl.tensor, vocab: tl.tensor, logits_stride: tl.tensor, allowed: tl.tensor,
    words: tl.tensor, bias: tl.tensor, marks: tl.tensor, repetition: tl.tensor, presence: tl.tensor,
    frequency: tl.tensor, ALLOWED: tl.constexpr, BIASED: tl.constexpr, MARKED: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """cuts[row] = (farthest distance, last id there); (-1, 0) where nothing is filtered. `distances` int32 [S, V]."""
    row = tl.program_id(0).to(tl.int64)
    heat = tl.load(temperature + row).to(tl.float32)
    k = tl.load(top_k + row)
    p, least = tl.load(top_p + row).to(tl.float64), tl.load(min_p + row).to(tl.float64)
    by_k = (k > 0) & (k < vocab)
    cut, last = tl.full((), -1, tl.int32), tl.full((), 0, tl.int32)
    if (heat > 0) & (by_k | (p < 1.0) | (least > 0.0)):
        at = distances + row * vocab
        best = tl.full((BLOCK,), float("-inf"), tl.float32)
        for start in range(0, vocab, BLOCK):
            token = start + tl.arange(0, BLOCK)
            inside = token < vocab
            raw = tl.load(logits + row * logits_stride + token, mask=inside, other=float("-inf")).to(tl.float32)
            z = adjusted(raw, row, token, inside, vocab, allowed, words, bias, marks, repetition, presence, frequency,
                         ALLOWED, BIASED, MARKED)  # fmt: skip
            best = tl.maximum(best, z)
        top = tl.max(best, 0)
        top = tl.where(top == float("-inf"), 0.0, top)
        for start in range(0, vocab, BLOCK):
            token = start + tl.arange(0, BLOCK)
            inside = token < vocab
            raw = tl.load(logits + row * logits_stride + token, mask=inside, other=float("-inf")).to(tl.float32)
            z = adjusted(raw, row, token, inside, vocab, allowed, words, bias, marks, repetition, presence, frequency,
                         ALLOWED, BIASED, MARKED)  # fmt: skip
            y = tl.div_rn(z - top, tl.zeros_like(z) + heat)
            tl.store(at + token, tl.minimum(y.to(tl.int32, bitcast=True) & 0x7FFFFFFF, FARTHEST), mask=inside)
        tl.debug_barrier()
        cut, last = _cut(at, vocab, k, by_k, p, least, BLOCK)
    tl.store(cuts + row * 2, cut)
    tl.store(cuts + row * 2 + 1, last)


@kernel
def _cut(
    at: tl.tensor, vocab: tl.tensor, k: tl.tensor, by_k: tl.tensor, p: tl.tensor, least: tl.tensor, BLOCK: tl.constexpr
) -> tl.tensor:
    """The row's cut: (distance, last id of that distance)."""
    cut = tl.full((), FARTHEST, tl.int32)
    many = tl.full((), 1, tl.int64) * vocab
    whole = tl.full((), 0, tl.int64)
    if by_k:
        cut = search(at, vocab, k, cut, cut, 0, BLOCK)
        many = k - reached(at, vocab, cut - 1, cut, 0, BLOCK)
    if p < 1.0:
        if by_k:
            whole = reached(at, vocab, cut - 1, cut, 1, BLOCK) + many * weight_of(cut)
        else:
            whole = reached(at, vocab, cut, cut, 1, BLOCK)
        target = tl.maximum(tl.ceil(p * whole.to(tl.float64)).to(tl.int64), 1)
        nucleus = search(at, vocab, target, cut, cut, 1, BLOCK)
        missing = target - reached(at, vocab, nucleus - 1, nucleus, 1, BLOCK)
        weight = tl.maximum(weight_of(nucleus), 1)
        needed = tl.maximum((missing + weight - 1) // weight, 1)
        many = tl.where(nucleus == cut, tl.minimum(many, needed), needed)
        cut = nucleus
    if least > 0.0:
        bound = -tl.log(least)
        near = tl.maximum(bound, 0.0).to(tl.float32)
        far = near.to(tl.int32, bitcast=True) - (near.to(tl.float64) > bound).to(tl.int32)
        far = tl.maximum(far, 0)
        many = tl.where(far < cut, tl.full((), 1, tl.int64) * vocab, many)
        cut = tl.minimum(cut, far)
    last = tl.full((), 0, tl.int32) + vocab - 1
    ties = reached(at, vocab, last, cut, 2, BLOCK)
    if ties > many:
        last = search(at, vocab, many, last, cut, 2, BLOCK)
    return cut, last
