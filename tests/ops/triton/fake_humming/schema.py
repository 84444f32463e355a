"""The description of a weight's form, and what tensors go with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(kw_only=True)
class HummingWeightSchema:
    """Unsigned codes of `b_dtype`, scales of `bs_dtype` for `weight_scale_group_size` columns, or for all of them (0)."""

    b_dtype: str
    bs_dtype: str
    weight_scale_group_size: int = 0
    has_zero_point: bool = False

    @property
    def bits(self) -> int:
        """Of a code."""
        return int(self.b_dtype.removeprefix("uint"))

    def wanted(
        self, shape_n: int, shape_k: int, dtype: torch.dtype, has_bias: bool
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each tensor."""
        groups = shape_k // (self.weight_scale_group_size or shape_k)
        found: dict[str, Any] = {
            "weight": ((shape_n, shape_k * self.bits // 32), torch.int32),
            "weight_scale": ((shape_n, groups), dtype),
        }
        if self.has_zero_point:
            found["zero_point"] = ((shape_n * self.bits // 32, groups), torch.int32)
        return found | ({"bias": ((shape_n,), dtype)} if has_bias else {})
