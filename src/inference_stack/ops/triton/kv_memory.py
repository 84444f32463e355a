"""How the GPU's kernels see one layer's KV memory: units of 16 tokens, each token's key and value side by side.

    unit of entry e, at byte (e + first) * granule:   kv head 0 | kv head 1 | …
    a head:   [16 tokens][key E | value E] numbers    with int8 then   fp16 [16] scales of keys, fp16 [16] of values

A token of a head is 2 · E neighbours, which are read in the widest loads there are. It knows addresses, no arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton.language as tl

from inference_stack.ops.api import KvLayer

TYPES: Final = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.int8: tl.int8,
    torch.float8_e4m3fn: tl.float8e4nv,
}
NAMES: Final = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int8: "int8",
    torch.float8_e4m3fn: "fp8",
}
GRAIN: Final = 4
"""Bytes that divide every granule: the widest number of a unit."""


@dataclass(frozen=True, slots=True)
class KvView:
    """`type` of the numbers, `first` granule of the layer, bytes of a granule, bytes of one head of a unit."""

    type: Any
    first: int
    granule: int
    head_bytes: int


def view(kv: KvLayer) -> KvView:
    """The layer's addresses. Raises ValueError for granules that would leave numbers unaligned."""
    if kv.granule_bytes % GRAIN:
        raise ValueError(f"granules of {kv.granule_bytes} bytes leave KV unaligned; they must be multiples of {GRAIN}")
    return KvView(TYPES[kv.dtype], kv.offset_bytes // kv.granule_bytes, kv.granule_bytes, kv.unit_bytes // kv.kv_heads)
