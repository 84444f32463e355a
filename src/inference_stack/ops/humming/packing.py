"""Our canonical quantised weights in the form that humming-kernels takes: w = (code − zero) · scale.

    weight      int32 [N, K·bits/32], lowest bits first: the canonical codes as they lie, 8-bit ones with 128 added
    scale       [N, K/group] in the activations' type
    zero_point  int32 [N·bits/32, K/group], packed along N; absent where all zeros are in the middle, 8 or 128

Zeros must be whole codes, as AWQ's, GPTQ's and compressed-tensors' are: its other kind of zero has the activations' eight bits,
too few for a zero between two codes. Raises `UnsuitableWeight` for what it cannot hold, and changes no weight but by rounding
scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from inference_stack.ops.api import Quantised
from inference_stack.ops.implementation import UnsuitableWeight

SIDE: Final = 128
"""Sizes that all of its tiles divide."""
SMALLEST_GROUP: Final = 16


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight as the package takes it; `group` is 0 where a row has one scale."""

    bits: int
    group: int
    tensors: dict[str, Tensor]


def packed(weight: Quantised, bias_N: Tensor | None, device: torch.device, dtype: torch.dtype) -> Packed:
    """The weight on a device, for activations of `dtype`. Raises `UnsuitableWeight` for what cannot be held."""
    outputs, depth = weight.shape
    if outputs % SIDE or depth % SIDE:
        raise UnsuitableWeight(f"humming wants sides that are multiples of {SIDE}; this weight is {outputs}×{depth}")
    group = weight.group
    if group != depth and (group < SMALLEST_GROUP or group & (group - 1)):
        raise UnsuitableWeight(
            f"humming wants groups of 16, 32, 64 and so on, or whole rows; this weight has groups of {group}"
        )
    codes = weight.codes.to(device)
    codes = codes if weight.bits == 4 else codes.view(torch.uint8) ^ 128
    tensors = {
        "weight": codes.contiguous().view(torch.int32),
        "weight_scale": weight.scale_NG.to(device, dtype).contiguous(),
    }
    zero_NG = _zeros(weight, device)
    if not bool((zero_NG == 1 << (weight.bits - 1)).all()):
        tensors["zero_point"] = _along_outputs(zero_NG, weight.bits)
    if bias_N is not None:
        tensors["bias"] = bias_N.to(device, dtype).contiguous()
    return Packed(weight.bits, 0 if group == depth else group, tensors)


def _zeros(weight: Quantised, device: torch.device) -> Tensor:
    """Zeros as codes, int32 [N, K/group]."""
    middle = 0 if weight.bits == 4 else 128
    scale_NG = weight.scale_NG.to(device, torch.float64)
    if weight.zero_NG is None:
        return torch.full_like(scale_NG, middle, dtype=torch.int32)
    minus_NG = -weight.zero_NG.to(device, torch.float64)
    steps_NG = torch.where(scale_NG == 0, 0.0, minus_NG / scale_NG).round()
    if not torch.equal((steps_NG * scale_NG).to(weight.zero_NG.dtype), minus_NG.to(weight.zero_NG.dtype)):
        raise UnsuitableWeight("humming wants zeros that are whole codes; some of this weight lie between two")
    zero_NG = steps_NG.to(torch.int32) + middle
    if bool((zero_NG < 0).any()) or bool((zero_NG >= 1 << weight.bits).any()):
        raise UnsuitableWeight(
            f"humming wants zeros among the codes of {weight.bits} bits; some of this weight are outside"
        )
    return zero_NG


def _along_outputs(zero_NG: Tensor, bits: int) -> Tensor:
    """int32 [N·bits/32, G]: neighbouring outputs share a word, the lowest bits first."""
    per_word = 32 // bits
    zero_WPG = zero_NG.unflatten(0, (-1, per_word))
    words_WG = zero_WPG[:, 0].clone()
    for place in range(1, per_word):
        words_WG |= zero_WPG[:, place] << (bits * place)
    return words_WG.contiguous()
