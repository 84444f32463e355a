"""Brings GGUF's block-quantised types to the canonical form, without a float in between but for the scales.

    type   bytes   elements   x =                        becomes
    Q4_0      18         32   d · (q - 8)                4 bits, groups of 32, zero -8·d
    Q4_1      20         32   d · q + m                  4 bits, groups of 32, zero m
    Q5_0      22         32   d · (q - 16)               8 bits, groups of 32
    Q5_1      24         32   d · q + m                  8 bits, groups of 32, zero m
    Q8_0      34         32   d · q                      8 bits, groups of 32
    Q4_K     144        256   d · s · q - dmin · t       4 bits, groups of 32, scale d·s, zero -dmin·t
    Q5_K     176        256   d · s · q - dmin · t       8 bits, groups of 32, scale d·s, zero -dmin·t
    Q6_K     210        256   d · s · (q - 32)           8 bits, groups of 16, scale d·s

In blocks of 32 the low nibbles are elements 0 … 15 and the high ones 16 … 31; in blocks of 256 it is so with each 64
elements. The canonical form has neighbours in one byte. numpy releases the GIL in the inner loops, so that callers may
convert several tensors at once on threads. Knows bytes; it knows no file and no model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from inference_stack.artifacts.canonical import CHUNK_BYTES, Bytes, Floats, Form, Grouped
from inference_stack.artifacts.gguf import SUPPORTED

Array = npt.NDArray[Any]
Fill = Callable[[Array, Grouped], None]


class _Type(NamedTuple):
    """A block as numpy sees it, what it becomes, and how. The filler is given blocks [B] and outputs [B, …]."""

    block: np.dtype[Any]
    form: Form
    fill: Fill


def form_of(type_id: int) -> Form | None:
    """What a type becomes; None for types that are not quantised."""
    kind = _TYPES.get(SUPPORTED[type_id].name)
    return kind.form if kind else None


def unpack(raw: Bytes, type_id: int, out: Grouped) -> None:
    """Bring `raw` (uint8 [N, bytes of a row], contiguous) of a quantised type to `out`, of the type's form, contiguous."""
    kind = _TYPES[SUPPORTED[type_id].name]
    blocks = raw.reshape(-1).view(kind.block)
    if not out.codes.flags.c_contiguous or out.form != kind.form:
        raise ValueError(f"{SUPPORTED[type_id].name} needs a contiguous output of its own form")
    flat = _by_blocks(out, len(blocks))
    chunk = max(CHUNK_BYTES // kind.block.itemsize, 1)
    for start in range(0, len(blocks), chunk):
        kind.fill(blocks[start : start + chunk], flat.rows(start, start + chunk))


def _by_blocks(out: Grouped, blocks: int) -> Grouped:
    zero = None if out.zero_NG is None else out.zero_NG.reshape(blocks, -1)
    return Grouped(out.form, out.codes.reshape(blocks, -1), out.scale_NG.reshape(blocks, -1), zero)


def _zeros(out: Grouped) -> Array:
    if out.zero_NG is None:
        raise ValueError("this type has zeros")
    return out.zero_NG


def _column(blocks: Array, field: str) -> Floats:
    """A number of every block, fp32 [B, 1]."""
    return blocks[field].astype(np.float32)[:, None]


def _bytes(blocks: Array, field: str) -> Bytes:
    """The bytes of a field, uint8 [B, length], contiguous."""
    return np.ascontiguousarray(blocks[field]).view(np.uint8).reshape(len(blocks), -1)


def _pair(words: npt.NDArray[Any]) -> Bytes:
    """The low nibbles of two bytes, as one byte."""
    words = words & 0x0F0F
    words |= words >> 4
    return words.astype(np.uint8)


def _neighbours(packed: Bytes, half: str, codes: Bytes) -> None:
    """4-bit codes [B, …] of blocks whose low nibbles come `half` a run before the high ones, to neighbours in a byte."""
    words = packed.view(np.uint16)
    runs = codes.view(half).reshape(-1, 2)
    runs[:, 0] = _pair(words).view(half).reshape(-1)
    runs[:, 1] = _pair(words >> 4).view(half).reshape(-1)


def _q4_0(blocks: Array, out: Grouped) -> None:
    _neighbours(_bytes(blocks, "q"), "<u8", out.codes)
    out.scale_NG[:] = _column(blocks, "d")
    np.multiply(out.scale_NG, -8, out=_zeros(out))


def _q4_1(blocks: Array, out: Grouped) -> None:
    _neighbours(_bytes(blocks, "q"), "<u8", out.codes)
    out.scale_NG[:, 0] = blocks["d"]
    _zeros(out)[:, 0] = blocks["m"]


def _five_bits(blocks: Array, codes: Bytes) -> None:
    """Codes 0 … 31 of Q5_0 and Q5_1; the fifth bits lie apart."""
    packed = _bytes(blocks, "q")
    np.left_shift(np.unpackbits(_bytes(blocks, "h"), axis=1, bitorder="little"), 4, out=codes)
    codes[:, :16] |= packed & 15
    codes[:, 16:] |= packed >> 4


def _q5_0(blocks: Array, out: Grouped) -> None:
    _five_bits(blocks, out.codes.view(np.uint8))
    np.subtract(out.codes, 16, out=out.codes)
    out.scale_NG[:, 0] = blocks["d"]


def _q5_1(blocks: Array, out: Grouped) -> None:
    _five_bits(blocks, out.codes.view(np.uint8))
    out.scale_NG[:, 0] = blocks["d"]
    _zeros(out)[:, 0] = blocks["m"]


def _q8_0(blocks: Array, out: Grouped) -> None:
    out.codes.view("V32")[:, 0] = blocks["q"]
    out.scale_NG[:, 0] = blocks["d"]


def _six_bit_scales(blocks: Array, out: Grouped) -> None:
    """The eight scales s and minima t, of six bits each, that Q4_K and Q5_K pack into twelve bytes."""
    packed = _bytes(blocks, "s")
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.hstack((first & 63, third & 15 | first >> 6 << 4))
    minima = np.hstack((second & 63, third >> 4 | second >> 6 << 4))
    np.multiply(scales, _column(blocks, "d"), out=out.scale_NG)
    np.multiply(minima, -_column(blocks, "dmin"), out=_zeros(out))


def _q4_k(blocks: Array, out: Grouped) -> None:
    _neighbours(_bytes(blocks, "q"), "V16", out.codes)
    _six_bit_scales(blocks, out)


def _q5_k(blocks: Array, out: Grouped) -> None:
    packed, fifth = _bytes(blocks, "q").reshape(-1, 4, 32), _bytes(blocks, "h")
    runs = out.codes.view(np.uint8).reshape(-1, 4, 2, 32)
    for run in range(8):
        nibbles = packed[:, run // 2] >> 4 if run % 2 else packed[:, run // 2] & 15
        runs[:, run // 2, run % 2] = nibbles | (fifth >> run & 1) << 4
    _six_bit_scales(blocks, out)


def _q6_k(blocks: Array, out: Grouped) -> None:
    low, high = _bytes(blocks, "q").reshape(-1, 2, 2, 32), _bytes(blocks, "h").reshape(-1, 2, 32)
    runs = out.codes.reshape(-1, 2, 4, 32)
    for run in range(4):
        nibbles = low[:, :, run % 2] >> 4 if run >= 2 else low[:, :, run % 2] & 15
        codes = nibbles | (high >> 2 * run & 3) << 4
        np.subtract(codes.view(np.int8), 32, out=runs[:, :, run])
    np.multiply(_bytes(blocks, "s").view(np.int8), _column(blocks, "d"), out=out.scale_NG)


_D, _M = ("d", "<f2"), ("m", "<f2")
_TYPES = {
    "Q4_0": _Type(np.dtype([_D, ("q", "V16")]), Form(4, 32, zeros=True), _q4_0),
    "Q4_1": _Type(np.dtype([_D, _M, ("q", "V16")]), Form(4, 32, zeros=True, half=True), _q4_1),
    "Q5_0": _Type(np.dtype([_D, ("h", "V4"), ("q", "V16")]), Form(8, 32, zeros=False, half=True), _q5_0),
    "Q5_1": _Type(np.dtype([_D, _M, ("h", "V4"), ("q", "V16")]), Form(8, 32, zeros=True, half=True), _q5_1),
    "Q8_0": _Type(np.dtype([_D, ("q", "V32")]), Form(8, 32, zeros=False, half=True), _q8_0),
    "Q4_K": _Type(np.dtype([_D, ("dmin", "<f2"), ("s", "V12"), ("q", "V128")]), Form(4, 32, zeros=True), _q4_k),
    "Q5_K": _Type(
        np.dtype([_D, ("dmin", "<f2"), ("s", "V12"), ("h", "V32"), ("q", "V128")]), Form(8, 32, zeros=True), _q5_k
    ),
    "Q6_K": _Type(np.dtype([("q", "V128"), ("h", "V64"), ("s", "V16"), _D]), Form(8, 16, zeros=False), _q6_k),
}
