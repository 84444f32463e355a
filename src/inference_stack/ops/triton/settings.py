"""What the Triton ops of one device are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonSettings:
    """`dtype` is the activations' type. `deterministic` asks for one reduction order: a row's bits then depend on that row
    alone, not on the batch, the chunk or the split; without it only the result up to rounding does. `weights` "float8" rounds
    dense projections, and what they are multiplied with, to e4m3."""

    dtype: torch.dtype = torch.bfloat16
    deterministic: bool = False
    weights: Literal["native", "float8"] = "native"
