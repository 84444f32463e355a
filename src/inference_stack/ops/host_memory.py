"""Main memory in pages as large as the system gives: KV and activations touch far more small pages than a processor remembers."""

from __future__ import annotations

import mmap
from typing import Final

import torch
from torch import Tensor

HUGE_PAGE: Final = 2 << 20
"""Bytes; a mapping begins at a multiple of it, or its first page is a small one."""


def host_bytes(nbytes: int) -> Tensor:
    """Zeroed uint8 [nbytes] that begins on a page, in huge pages where the system has them. Pages are taken when first touched.

    Raises `OSError` (Linux) or `RuntimeError` when there are not so many addresses.
    """
    room = nbytes + HUGE_PAGE
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        raw = torch.zeros(room, dtype=torch.uint8)
    else:
        memory = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        raw = torch.frombuffer(memory, dtype=torch.uint8)
    start = -raw.data_ptr() % HUGE_PAGE
    return raw[start : start + nbytes]
