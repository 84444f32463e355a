"""An order of tokens without ties: by logit, highest first, and among equal logits the lower id first.

The pair becomes one int64 key, so that any selection algorithm gives the same answer.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_LOW: Final = 0x7FFFFFFF


def rank_keys(values_SV: Tensor) -> Tensor:
    """int64 keys [S, V] of fp32 values, larger is better; -0.0 counts as 0.0."""
    bits = (values_SV + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ _LOW, bits).to(torch.int64)
    return (ordered << 32) | (_LOW - torch.arange(values_SV.shape[1], device=values_SV.device))


def best(values_SV: Tensor, count: int) -> Tensor:
    """Ids int64 [S, count] of the best tokens, best first."""
    return _LOW - (rank_keys(values_SV).topk(count, dim=1).values & _LOW)


def rank_of(values_SV: Tensor, tokens_S: Tensor) -> Tensor:
    """Rank int64 [S] (from 1) of one token per row, in the order of `best`."""
    chosen = values_SV.gather(1, tokens_S[:, None])
    ids = torch.arange(values_SV.shape[1], device=values_SV.device)
    ahead = (values_SV > chosen) | ((values_SV == chosen) & (ids < tokens_S[:, None]))
    return ahead.sum(1) + 1
