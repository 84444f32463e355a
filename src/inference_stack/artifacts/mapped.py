"""Pages of mapped files: read by touching them, given back when they are no longer wanted.

A mapped page counts as this process's memory while it is mapped, although it is the system's file cache. A loader that
releases what it has read is never larger than what it made.
"""

from __future__ import annotations

import mmap


def release_pages(mapped: mmap.mmap, offset: int, nbytes: int) -> None:
    """Unmap the pages that lie in this range, ends included: a neighbour that still reads them maps them again."""
    if hasattr(mapped, "madvise") and nbytes:
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, start, offset + nbytes - start)
