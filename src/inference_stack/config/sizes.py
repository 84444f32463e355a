"""Sizes in bytes as people write them. Knows units; does not know what is measured."""

from __future__ import annotations

import re

UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str) -> int:
    """Bytes in `text`: "2GiB", "1.5 GB", "4096". Raises `ValueError`."""
    found = _SIZE.fullmatch(text)
    if found is None or found[2].lower() not in UNITS:
        raise ValueError(f"expected a size such as 512MiB or 2GiB, not {text!r}")
    return (
        int(float(found[1]) * UNITS[found[2].lower()]) if "." in found[1] else int(found[1]) * UNITS[found[2].lower()]
    )


def format_size(nbytes: int) -> str:
    """`nbytes` in the largest binary unit that leaves at least 1: "1.50 GiB"."""
    size, unit = float(nbytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            break
        size, unit = size / 1024, larger
    return f"{nbytes} B" if unit == "B" else f"{size:.2f} {unit}"
