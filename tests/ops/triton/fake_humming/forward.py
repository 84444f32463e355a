"""The product: w = (code - zero) * scale, the zero being in the middle where none is given."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.ops.triton.fake_humming.transform import LayerConfig


def humming_forward(
    config: LayerConfig,
    inputs: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    bias: Tensor | None = None,
    outputs: Tensor | None = None,
    locks: Tensor | None = None,
) -> Tensor:
    """y = x @ w.T + b, into `outputs`."""
    assert inputs.dtype == config.dtype and inputs.shape[1] == config.shape_k and inputs.is_contiguous()
    assert outputs is not None and outputs.dtype == config.dtype
    assert outputs.shape == (inputs.shape[0], config.shape_n) and outputs.is_contiguous()
    assert locks is not None and locks.dtype == torch.int32 and locks.numel() >= 1024 and not locks.any()
    assert weight_scale is not None
    codes = _unpacked(weight.flip(0), config.bits).float()
    zero: Tensor | float = float(1 << (config.bits - 1))
    width = config.shape_k // weight_scale.shape[1]
    if zero_point is not None:
        along = _unpacked(zero_point.flip(0).t().contiguous(), config.bits).t().float()
        zero = along.repeat_interleave(width, 1)
    dense = (codes - zero) * weight_scale.flip(0).float().repeat_interleave(width, 1)
    found = inputs.float() @ dense.to(config.dtype).float().t()
    outputs.copy_(found if bias is None else found + bias.flip(0).float())
    return outputs


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """Codes int32 [R, C·32/bits] of words [R, C], lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words[..., None] >> shifts) & ((1 << bits) - 1)).flatten(1)
