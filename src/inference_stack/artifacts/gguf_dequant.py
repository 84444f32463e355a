"""Unpacks GGUF tensor types to float32, into memory that the caller owns.

Works on a few thousand blocks at a time, so that intermediate values stay in cache; numpy releases the GIL in the inner
loops, so that callers may unpack several tensors at once on threads. Knows bytes; it knows no file and no model.

    Q4_0  d f16, 16 bytes           x = d · (q - 8)        low nibbles are elements 0 … 15 of the block,
    Q4_1  d f16, m f16, 16 bytes    x = d · q + m          high nibbles elements 16 … 31
    Q8_0  d f16, 32 int8            x = d · q
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from inference_stack.artifacts.gguf import SUPPORTED, Bytes

Floats = npt.NDArray[np.float32]

CHUNK_BLOCKS = 4096
BLOCK = 32


def dequantise(raw: Bytes, type_id: int, out: Floats) -> None:
    """Unpack `raw` (uint8, any shape, contiguous) of a supported type into `out` (float32, contiguous, same element
    count).
    """
    if not (raw.flags.c_contiguous and out.flags.c_contiguous):
        raise ValueError("raw and out must be contiguous")
    packing = SUPPORTED[type_id]
    if raw.size // packing.nbytes * packing.elements != out.size:
        raise ValueError(f"{raw.size} bytes of {packing.name} do not fill {out.size} elements")
    flat, target = raw.reshape(-1), out.reshape(-1)
    if packing.elements == 1:
        _UNPACK_FLOATS[packing.name](flat, target)
        return
    blocks, values = flat.reshape(-1, packing.nbytes), target.reshape(-1, BLOCK)
    unpack = _UNPACK_BLOCKS[packing.name]
    for start in range(0, len(blocks), CHUNK_BLOCKS):
        unpack(blocks[start : start + CHUNK_BLOCKS], values[start : start + CHUNK_BLOCKS])


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of every block, as float32 [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes, values: Floats) -> None:
    values[:, :16] = packed & 15
    values[:, 16:] = packed >> 4


def _q4_0(blocks: Bytes, values: Floats) -> None:
    _nibbles(blocks[:, 2:], values)
    values -= 8
    values *= _half(blocks, 0)


def _q4_1(blocks: Bytes, values: Floats) -> None:
    _nibbles(blocks[:, 4:], values)
    values *= _half(blocks, 0)
    values += _half(blocks, 2)


def _q8_0(blocks: Bytes, values: Floats) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _half(blocks, 0), out=values)


def _f32(raw: Bytes, values: Floats) -> None:
    values.view(np.uint8)[:] = raw


def _f16(raw: Bytes, values: Floats) -> None:
    values[:] = np.frombuffer(raw, "<f2")


def _bf16(raw: Bytes, values: Floats) -> None:
    np.left_shift(np.frombuffer(raw, "<u2"), 16, out=values.view(np.uint32), dtype=np.uint32)


_UNPACK_BLOCKS: dict[str, Callable[[Bytes, Floats], None]] = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q8_0": _q8_0}
_UNPACK_FLOATS: dict[str, Callable[[Bytes, Floats], None]] = {"F32": _f32, "F16": _f16, "BF16": _bf16}
