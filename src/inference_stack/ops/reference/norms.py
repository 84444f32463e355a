"""Root-mean-square normalisation (arXiv:1910.07467): y = x * rsqrt(mean(x²) + eps) * weight over the last dimension, in fp32.

A row's mean is one reduction over its own D numbers. torch splits a reduction across threads only from 32768 elements on, and
how it splits depends on the number of rows; wider rows are therefore reduced in fixed pieces.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from inference_stack.ops.workspace import Workspace

PIECE: Final = 16384
"""Numbers reduced at once; below torch's grain of parallel reductions."""


def rmsnorm(workspace: Workspace, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x * rsqrt(mean(x²) + eps) * weight, [T, D] fp32."""
    y_TD = workspace.take_like(x_TD, x_TD.shape, torch.float32)
    return normalise(x_TD, weight_D, eps, y_TD)


def add_rmsnorm(
    workspace: Workspace, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """s = x + residual; (rmsnorm(s), s)."""
    sum_TD = workspace.take_like(x_TD, x_TD.shape, torch.float32)
    torch.add(x_TD, residual_TD, out=sum_TD)
    y_TD = workspace.take_like(x_TD, x_TD.shape, torch.float32)
    return normalise(sum_TD, weight_D, eps, y_TD), sum_TD


def normalise(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """The formula itself over the last dimension of fp32 `x` [..., D], written to `out`."""
    torch.mul(x, x, out=out)
    scale = torch.rsqrt(_mean(out).add_(eps))
    torch.mul(x, scale, out=out)
    return out.mul_(weight)


def _mean(x: Tensor) -> Tensor:
    """Mean over the last dimension, kept; in one order of summation for any number of rows."""
    width = x.shape[-1]
    if width <= PIECE:
        return x.mean(-1, keepdim=True)
    total = x[..., :PIECE].sum(-1, keepdim=True)
    for start in range(PIECE, width, PIECE):
        total += x[..., start : start + PIECE].sum(-1, keepdim=True)
    return total.div_(width)
