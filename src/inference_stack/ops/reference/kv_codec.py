"""What the KV memory stores of a number: fp32, bf16, fp16 or fp8 (e4m3) that saturate, or int8 codes under one scale per token
and head.

int8: scale = max|x| / 127 over the head's numbers, rounded to fp16; code = round(x / scale) to even, within ±127; value = code *
scale. fp16, and int8's scales, saturate at ±65504, fp8 at ±448. What is not a number stays so: in int8 its scale does.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

LARGEST_HALF: Final = 65504.0
LARGEST_FP8: Final = 448.0
CODES: Final = 127.0


def encode(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """fp32 [..., E] as stored: numbers [..., E] in `dtype`, and with int8 scales fp16 [..., 1]."""
    if dtype == torch.float16:
        return half(x), None
    if dtype == torch.float8_e4m3fn:
        return x.clamp(-LARGEST_FP8, LARGEST_FP8).to(dtype), None
    if dtype != torch.int8:
        return x.to(dtype), None
    scale = half(x.abs().amax(-1, keepdim=True) / CODES)
    codes = (x / scale.float()).round_().clamp_(-CODES, CODES)
    coded = (scale > 0) & torch.isfinite(scale)
    return torch.where(coded, codes, 0.0).to(torch.int8), scale


def decode(stored: Tensor, scale: Tensor | None) -> Tensor:
    """Stored numbers [..., E] as fp32; `scale` [..., 1] where they are int8."""
    values = stored.to(torch.float32)
    return values if scale is None else values.mul_(scale.to(torch.float32))


def half(x: Tensor) -> Tensor:
    """fp16, saturating; NaN stays NaN."""
    return x.clamp(-LARGEST_HALF, LARGEST_HALF).to(torch.float16)
