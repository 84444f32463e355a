"""How a model's KV memory is shaped: groups of layers that share a block table.

A KV group holds layers of equal unit (bytes of one layer's K and V of one block) and equal retention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from inference_stack.core.request import BLOCK_TOKENS

DTYPE_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8": 1}
SCALE_BYTES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGroupSpec:
    """One KV group of a model. `layers` are model layer indices in arena order; `window` is in tokens (None: full attention).

    A unit holds keys and values of `BLOCK_TOKENS` tokens for each KV head; in which order is the kernels' affair. int8 adds a scale
    (fp16) for each token's key and one for its value. float8 is e4m3 without infinities (arXiv:2209.05433), and has no scales.
    """

    name: str
    layers: tuple[int, ...]
    kv_heads: int
    head_dim: int
    dtype: str = "float32"
    window: int | None = None

    @property
    def unit_bytes(self) -> int:
        """Bytes of K and V of one layer of one block."""
        scales = 2 * SCALE_BYTES if self.dtype == "int8" else 0
        return self.kv_heads * BLOCK_TOKENS * (2 * self.head_dim * DTYPE_BYTES[self.dtype] + scales)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers of the group."""
        return self.unit_bytes * len(self.layers)
