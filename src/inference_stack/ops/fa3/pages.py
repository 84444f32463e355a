"""Our KV memory as paged attention of other packages wants it: keys and values [pages, 16, G, E], views of the arena.

    page e, at byte (e + first) · granule:   kv head 0 | kv head 1 | …       a head: [16 tokens][key E | value E]

so a page is one block, entries of our block tables are page numbers, and only strides differ from a tensor of their own. Pages
overlap as views where granules are smaller than units; entries that are handed out do not. Nothing is copied.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.ops.api import KvLayer

ALIGNMENT: Final = 16
"""Bytes that are loaded at once: addresses of tokens are multiples of them."""
MOST_PAGES: Final = 1 << 31


def pages(kv: KvLayer) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer. Raises ValueError for memory that cannot be read like this."""
    unaligned = (kv.granule_bytes | kv.offset_bytes | kv.arena.data_ptr()) % ALIGNMENT
    if unaligned or kv.head_dim * kv.dtype.itemsize % ALIGNMENT:
        raise ValueError(f"paged attention loads {ALIGNMENT} bytes at once, for which this KV memory is not aligned")
    count = (kv.arena.numel() - kv.offset_bytes - kv.unit_bytes) // kv.granule_bytes + 1
    if not 0 < count < MOST_PAGES:
        raise ValueError(f"paged attention counts pages in 32 bits; this KV memory would have {count}")
    size, width = kv.dtype.itemsize, kv.head_dim
    numbers = kv.arena[: kv.arena.numel() // size * size].view(kv.dtype)
    shape = (count, BLOCK_TOKENS, kv.kv_heads, width)
    strides = (kv.granule_bytes // size, 2 * width, kv.unit_bytes // kv.kv_heads // size, 1)
    first = numbers.storage_offset() + kv.offset_bytes // size
    return numbers.as_strided(shape, strides, first), numbers.as_strided(shape, strides, first + width)
