"""Multiplying by group-quantised weights, with activations quantised too: the specification of every quantised kernel.

Per row and block of `act_block` activations:   d = max|x| / 127    q = round(x · (127 / max|x|)), half to even
                                                q = 0 where max|x| ≤ 1e-30
Per output and block:   i = Σ code · q   and   j = Σ q, both exact integers
    y[t, n] = Σ over blocks of  scale[n] · i · d + zero[n] · j · d      in fp32, plus the bias

A row with NaN or infinity has d = NaN or infinity and so gives no finite result. Blocks are 32 wide, 16 where groups are.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from inference_stack.ops.api import Quantised

LARGEST: Final = 127.0
TINY: Final = 1e-30


def act_block(group: int) -> int:
    """Activations that share one scale, for weights of this group."""
    return 32 if group % 32 == 0 else 16


def quantise_rows(x_TK: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """(codes int8 [T, K], scales d fp32 [T, K/block]) of activations."""
    x_TBX = x_TK.to(torch.float32).unflatten(1, (-1, block))
    top_TB1 = x_TBX.abs().amax(-1, keepdim=True)
    largest = torch.full_like(
        top_TB1, LARGEST
    )  # a plain number over a tensor would be rounded twice, as its reciprocal times it
    inverse = torch.where(top_TB1 > TINY, largest / top_TB1, 0.0)
    codes = (x_TBX * inverse).round_().nan_to_num_(0.0).clamp_(-LARGEST, LARGEST)
    return codes.flatten(1).to(torch.int8), (top_TB1 / LARGEST)[..., 0]


def rounded(x_TK: Tensor, block: int) -> Tensor:
    """Activations as the quantised product sees them: codes times scales, fp32."""
    codes, scale_TB = quantise_rows(x_TK, block)
    return (codes.to(torch.float32).unflatten(1, (-1, block)) * scale_TB[..., None]).flatten(1)


def unpack(weight: Quantised) -> Tensor:
    """Codes as int8 [N, K]."""
    if weight.bits == 8:
        return weight.codes
    nibbles = torch.stack((weight.codes & 15, weight.codes >> 4), dim=-1)
    return nibbles.flatten(1).to(torch.int8)


def dequantise(weight: Quantised) -> Tensor:
    """The weight as fp32 [N, K], columns in the order of x."""
    grouped = unpack(weight).to(torch.float32).unflatten(1, (-1, weight.group))
    dense = grouped * weight.scale_NG.to(torch.float32)[..., None]
    if weight.zero_NG is not None:
        dense += weight.zero_NG.to(torch.float32)[..., None]
    dense_NK = dense.flatten(1)
    if weight.order_K is None:
        return dense_NK
    return torch.empty_like(dense_NK).index_copy_(1, weight.order_K.to(torch.int64), dense_NK)


def rows_of(weight: Quantised, index_T: Tensor) -> Tensor:
    """Some rows of the weight, fp32 [T, K]."""
    zero = None if weight.zero_NG is None else weight.zero_NG[index_T]
    part = Quantised(
        bits=weight.bits,
        codes=weight.codes[index_T],
        scale_NG=weight.scale_NG[index_T],
        zero_NG=zero,
        group=weight.group,
        order_K=weight.order_K,
    )
    return dequantise(part)


def block_sums(x_TK: Tensor, weight: Quantised) -> tuple[Tensor, Tensor, Tensor]:
    """The exact integers of the definition: i int32 [T, N, B] and j int32 [T, B]; and d fp32 [T, B]."""
    block = act_block(weight.group)
    x_TK = x_TK if weight.order_K is None else x_TK[:, weight.order_K.to(torch.int64)]
    q, scale_TB = quantise_rows(x_TK, block)
    q_TBX = q.to(torch.float64).unflatten(1, (-1, block))
    codes_NBX = unpack(weight).to(torch.float64).unflatten(1, (-1, block))
    i_TNB = torch.einsum("tbx,nbx->tnb", q_TBX, codes_NBX)
    return i_TNB.to(torch.int32), q_TBX.sum(-1).to(torch.int32), scale_TB


def product(x_TK: Tensor, weight: Quantised) -> Tensor:
    """y = x · wᵀ [T, N] by the definition, sums in float64. Slow: for tests of kernels."""
    i_TNB, j_TB, d_TB = block_sums(x_TK, weight)
    per_group = weight.group // act_block(weight.group)
    scale_NB = weight.scale_NG.to(torch.float64).repeat_interleave(per_group, 1)
    y_TN = torch.einsum("tnb,nb,tb->tn", i_TNB.to(torch.float64), scale_NB, d_TB.to(torch.float64))
    if weight.zero_NG is not None:
        zero_NB = weight.zero_NG.to(torch.float64).repeat_interleave(per_group, 1)
        y_TN += torch.einsum("tb,nb->tn", j_TB.to(torch.float64) * d_TB, zero_NB)
    return y_TN.to(torch.float32)
