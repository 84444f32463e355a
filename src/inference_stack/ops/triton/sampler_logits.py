"""Logits as a row's parameters change them: grammar, bias, penalties and bans, computed wherever a kernel reads a logit.

    marks [S, V] int32    bit 0: in the prompt; bit 1: banned; the rest counts emissions     integer atomics: no order
    bias  [S, V] fp32     a row's bias of a token, which its list names once

Lists of (row, token) pairs become these tables in one launch each, and no changed copy of the logits is made.
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

BLOCK: Final = 256


@kernel_for_any("count", "vocab")
def mark_history_kernel(
    rows: tl.tensor, tokens: tl.tensor, emitted: tl.tensor, marks: tl.tensor, count: tl.tensor, vocab: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Counts emitted tokens and marks those of prompts."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < count
    at = marks + tl.load(rows + entry, mask=inside, other=0) * vocab + tl.load(tokens + entry, mask=inside, other=0)
    is_output = tl.load(emitted + entry, mask=inside, other=0).to(tl.int32) != 0
    tl.atomic_add(at, tl.full((BLOCK,), 4, tl.int32), mask=inside & is_output, sem="relaxed")
    tl.atomic_or(at, tl.full((BLOCK,), 1, tl.int32), mask=inside & (is_output == 0), sem="relaxed")


@kernel_for_any("count", "vocab")
def mark_banned_kernel(
    rows: tl.tensor, tokens: tl.tensor, marks: tl.tensor, count: tl.tensor, vocab: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """Marks what must not be sampled."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < count
    at = marks + tl.load(rows + entry, mask=inside, other=0) * vocab + tl.load(tokens + entry, mask=inside, other=0)
    tl.atomic_or(at, tl.full((BLOCK,), 2, tl.int32), mask=inside, sem="relaxed")


@kernel_for_any("count", "vocab")
def add_bias_kernel(
    rows: tl.tensor, tokens: tl.tensor, values: tl.tensor, bias: tl.tensor, count: tl.tensor, vocab: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Spreads the list of biases."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < count
    at = bias + tl.load(rows + entry, mask=inside, other=0) * vocab + tl.load(tokens + entry, mask=inside, other=0)
    tl.atomic_add(at, tl.load(values + entry, mask=inside, other=0.0).to(tl.float32), mask=inside, sem="relaxed")


@kernel
def adjusted(
    raw: tl.tensor, row: tl.tensor, token: tl.tensor, inside: tl.tensor, vocab: tl.tensor, allowed: tl.tensor,
    words: tl.tensor, bias: tl.tensor, marks: tl.tensor, repetition: tl.tensor, presence: tl.tensor,
    frequency: tl.tensor, ALLOWED: tl.constexpr, BIASED: tl.constexpr, MARKED: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """fp32 logits of a tile after all changes; -inf outside the vocabulary. `row` is int64, `words` the grammar's stride."""
    z = tl.where(inside, raw, float("-inf"))
    if BIASED:
        z += tl.load(bias + row * vocab + token, mask=inside, other=0.0)
    if MARKED:
        mark = tl.load(marks + row * vocab + token, mask=inside, other=0)
        factor = tl.load(repetition + row).to(tl.float32)
        emitted = mark >> 2
        repeated = tl.where(z > 0, tl.div_rn(z, tl.zeros_like(z) + factor), z * factor)
        z = tl.where((mark & 1) + emitted > 0, repeated, z)
        z -= tl.load(frequency + row).to(tl.float32) * emitted.to(tl.float32)
        z -= tl.load(presence + row).to(tl.float32) * (emitted > 0).to(tl.float32)
        z = tl.where((mark & 2) != 0, float("-inf"), z)
    if ALLOWED:
        word = tl.load(allowed + row * words + token // 32, mask=inside, other=0)
        z = tl.where(((word >> (token % 32)) & 1) != 0, z, float("-inf"))
    return z


@dataclass(frozen=True, slots=True)
class Changes:
    """What `adjusted` reads. Tables that a step has no use for are any tensor, never read."""

    arguments: tuple[Any, ...]
    constants: dict[str, bool]


def changes(logits_SV: Tensor, inputs: SampleInputs) -> Changes:
    """Spreads the lists of a step; which there are is known from their lengths."""
    rows, vocab = logits_SV.shape
    marked = bool(inputs.history_row.numel() or inputs.banned_row.numel())
    biased = bool(inputs.bias_row.numel())
    allowed = inputs.allowed_SW
    marks = bias = inputs.temperature_S
    if marked:
        marks = torch.zeros((rows, vocab), dtype=torch.int32, device=logits_SV.device)
        _mark(marks, inputs, vocab)
    if biased:
        bias = torch.zeros((rows, vocab), dtype=torch.float32, device=logits_SV.device)
        count = inputs.bias_row.numel()
        add_bias_kernel[(triton.cdiv(count, BLOCK),)](
            inputs.bias_row, inputs.bias_token, inputs.bias_value, bias, count, vocab, BLOCK
        )
    bits = inputs.temperature_S if allowed is None else allowed if allowed.stride(1) == 1 else allowed.contiguous()
    penalties = (inputs.repetition_S, inputs.presence_S, inputs.frequency_S)
    arguments = (bits, 0 if allowed is None else bits.stride(0), bias, marks, *penalties)
    return Changes(arguments, {"ALLOWED": allowed is not None, "BIASED": biased, "MARKED": marked})


def _mark(marks: Tensor, inputs: SampleInputs, vocab: int) -> None:
    if history := inputs.history_row.numel():
        emitted = inputs.history_is_output.view(torch.uint8)
        mark_history_kernel[(triton.cdiv(history, BLOCK),)](
            inputs.history_row, inputs.history_token, emitted, marks, history, vocab, BLOCK
        )
    if banned := inputs.banned_row.numel():
        mark_banned_kernel[(triton.cdiv(banned, BLOCK),)](
            inputs.banned_row, inputs.banned_token, marks, banned, vocab, BLOCK
        )


PAIRS: Final = {"rows": "*i64", "tokens": "*i64", "count": "i32", "vocab": "i32"}
SHIPPED: Final = tuple(
    Shipped(name=name, kernel=one, signature=PAIRS | rest, constants={"BLOCK": BLOCK})
    for name, one, rest in (
        ("mark history", mark_history_kernel, {"emitted": "*u8", "marks": "*i32"}),
        ("mark banned", mark_banned_kernel, {"marks": "*i32"}),
        ("add bias", add_bias_kernel, {"values": "*fp32", "bias": "*fp32"}),
    )
)
