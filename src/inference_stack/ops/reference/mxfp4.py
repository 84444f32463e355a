"""Microscaling fp4 (OCP MX specification 1.0): sixteen values, and one power of two for 32 neighbouring columns.

    code   0 1 2 3 4 5 6 7    w = value of the code · 2 ** (scale - 127)
    value  0 ½ 1 1½ 2 3 4 6   codes 8 … 15: the same, negative

A scale of 255 means NaN. Twice the values are whole numbers, so that such a matrix is exactly a group-quantised one of 8 bits.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from inference_stack.ops.api import Quantised

GROUP: Final = 32
TWICE: Final = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the value of each code."""
BIAS: Final = 127
NOT_A_NUMBER: Final = 255


def powers(scales: Tensor, shift: int = 0) -> Tensor:
    """2 ** (scale - 127 + shift), fp32; NaN for 255."""
    exponent = scales.to(torch.int32) - (BIAS - shift)
    power = torch.ldexp(torch.ones_like(scales, dtype=torch.float32), exponent)
    return power.masked_fill_(scales == NOT_A_NUMBER, torch.nan)


def doubled(blocks: Tensor) -> Tensor:
    """Twice the values of blocks [..., K/2], int8 [..., K]."""
    codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2)
    return torch.tensor(TWICE, dtype=torch.int8, device=blocks.device)[codes.to(torch.int32)]


def dequantise(blocks: Tensor, scales: Tensor) -> Tensor:
    """The numbers, fp32 [..., K]."""
    grouped = doubled(blocks).to(torch.float32).unflatten(-1, (-1, GROUP))
    return (grouped * powers(scales, shift=-1)[..., None]).flatten(-2)


def as_codes(blocks: Tensor, scales: Tensor) -> Quantised:
    """One matrix [N, K] in the canonical form of 8 bits, the same numbers."""
    scale_NG = powers(scales, shift=-1)
    half_NG = scale_NG.to(torch.float16)
    exact = torch.equal(half_NG.to(torch.float32), scale_NG)
    return Quantised(bits=8, codes=doubled(blocks), scale_NG=half_NG if exact else scale_NG, zero_NG=None, group=GROUP)
