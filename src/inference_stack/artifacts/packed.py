"""Matrices as AWQ, GPTQ and compressed-tensors pack them into safetensors files, brought to the canonical form.

    AWQ (GEMM)           qweight int32 [K, N/8]   nibble i of a word is output AWQ_ORDER[i]   zeros packed alike, [K/g, N/8]
    GPTQ                 qweight int32 [K/8, N]   nibble i (or byte) is input i of 8 (of 4)   zeros packed along N, [K/g, N/8]
    pack-quantized       weight_packed int32 [N, K/8]   codes offset by half their range      zeros packed along N, [N/8, K/g]
    int-quantized        weight int8 [N, K]

    w = (code - zero) · scale.  GPTQ's first format stores zeros less one, subtracted from whole words.

Arrays are views of mapped files; `read` works on a part at a time. Knows arrays; it knows no file.
References: AutoAWQ's WQLinear_GEMM, GPTQModel's BaseQuantLinear and format conversion, compressed-tensors' compressors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from inference_stack.artifacts.canonical import (
    CHUNK_BYTES,
    Bytes,
    FloatView,
    Form,
    Grouped,
    Order,
    checked_group,
    interleaved,
    order_of,
    signed,
)
from inference_stack.core.errors import unsupported_model

Words = npt.NDArray[np.int32]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class PackedMatrix(Protocol):
    """A quantised matrix in a file's layout. `form` is what it becomes; `order_K` as `canonical.order_of`."""

    shape: tuple[int, int]
    form: Form
    order_K: Order | None

    def read(self, out: Grouped) -> None:
        """Fill `out`, of this form."""
        ...


def expect(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise `unsupported_model` if a part of a packed matrix does not have the shape that follows from the others."""
    if shape != expected:
        raise unsupported_model(f"Tensor {name!r} has shape {list(shape)}; {list(expected)} follows from its matrix.")


def _row_chunks(rows: int, bytes_of_a_row: int) -> list[tuple[int, int]]:
    step = max(CHUNK_BYTES // bytes_of_a_row, 8)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def _store_zeros(out: Grouped, zero_NG: npt.NDArray[Any]) -> None:
    """Minus zero point times scale."""
    if out.zero_NG is not None:
        np.multiply(-zero_NG.astype(np.float32), out.scale_NG, out=out.zero_NG)


class AwqMatrix:
    """AWQ's GEMM layout, 4 bits."""

    order_K: Order | None = None

    def __init__(self, name: str, qweight: Words, qzeros: Words, scales: FloatView) -> None:
        columns, outputs = qweight.shape[0], qweight.shape[1] * 8
        groups = scales.shape[0]
        self.shape = (outputs, columns)
        self.form = Form(4, checked_group(name, columns, groups), zeros=True)
        expect(f"{name}.scales", scales.shape, (groups, outputs))
        expect(f"{name}.qzeros", qzeros.shape, (groups, outputs // 8))
        self._qweight, self._qzeros, self._scales = qweight, qzeros, scales

    def read(self, out: Grouped) -> None:
        """Fill `out`."""
        codes = out.codes.reshape(-1, 8, self.shape[1] // 2)
        for start, stop in _row_chunks(self.shape[0] // 8, self.shape[1] * 8):
            even, odd = (self._qweight[side::2, start:stop].view(np.uint32) for side in (0, 1))
            low = even & 0x0F0F0F0F | (odd & 0x0F0F0F0F) << 4
            high = even >> 4 & 0x0F0F0F0F | odd & 0xF0F0F0F0
            for half, words in enumerate((low, high)):
                pairs = np.ascontiguousarray(words.T).view(np.uint8)
                for nibble in range(half, 8, 2):
                    codes[start:stop, AWQ_ORDER[nibble]] = pairs[:, nibble // 2 :: 4]
        out.scale_NG[:] = self._scales.fp32().T
        _store_zeros(out, _awq_codes(self._qzeros).T)


def _awq_codes(words: Words) -> Bytes:
    """Codes uint8 [rows, 8·W] of int32 [rows, W]."""
    nibbles = interleaved(np.ascontiguousarray(words).view(np.uint8)).reshape(words.shape[0], -1, 8)
    codes = np.empty_like(nibbles)
    codes[:, :, AWQ_ORDER] = nibbles
    return codes.reshape(words.shape[0], -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqArrays:
    """What a GPTQ matrix consists of; `g_idx` (the group of each input) may be missing."""

    qweight: Words
    qzeros: Words
    scales: FloatView
    g_idx: Words | None


class GptqMatrix:
    """GPTQ's layout, 4 or 8 bits, as quantised in any order. `bits` is the configuration's, used where there is no `g_idx`."""

    def __init__(self, name: str, arrays: GptqArrays, bits: int, zeros_less_one: bool) -> None:
        words, outputs = arrays.qweight.shape
        columns = words * 32 // bits if arrays.g_idx is None else len(arrays.g_idx)
        self.bits = words * 32 // columns
        if self.bits not in (4, 8) or words * 32 != self.bits * columns:
            raise unsupported_model(f"{name}: GPTQ with {words * 32 / columns:g} bits is not supported (4 and 8 are).")
        groups = arrays.scales.shape[0]
        self.shape = (outputs, columns)
        self.form = Form(self.bits, checked_group(name, columns, groups), zeros=True)
        expect(f"{name}.scales", arrays.scales.shape, (groups, outputs))
        expect(f"{name}.qzeros", arrays.qzeros.shape, (groups, outputs * self.bits // 32))
        self.order_K = None if arrays.g_idx is None else order_of(name, arrays.g_idx, self.form.group)
        self._arrays, self._zeros_less_one = arrays, zeros_less_one

    def read(self, out: Grouped) -> None:
        """Fill `out`, columns in `order_K`."""
        for start, stop in _row_chunks(self.shape[0], self.shape[1]):
            strip = np.ascontiguousarray(self._arrays.qweight[:, start:stop])  # close together, before it is turned
            packed = np.ascontiguousarray(strip.T).view(np.uint8)
            out.codes[start:stop] = _ordered(packed, self.bits, self.order_K)
        out.scale_NG[:] = self._arrays.scales.fp32().T
        _store_zeros(out, self._zeros_GN().T)

    def _zeros_GN(self) -> npt.NDArray[Any]:
        words = np.ascontiguousarray(self._arrays.qzeros).view(np.uint32)
        if self._zeros_less_one:
            words = words + np.uint32(0x11111111 if self.bits == 4 else 0x01010101)
        packed = words.view(np.uint8)
        return interleaved(packed) if self.bits == 4 else packed.astype(np.int16) - 128


def _ordered(packed: Bytes, bits: int, order_K: Order | None) -> npt.NDArray[Any]:
    """Rows of packed unsigned codes in canonical form, their columns in this order."""
    if bits == 8:
        return signed(packed if order_K is None else packed.take(order_K, 1))
    if order_K is None:
        return packed
    codes = interleaved(packed)
    return codes.take(order_K[0::2], 1) | codes.take(order_K[1::2], 1) << 4


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedArrays:
    """What a compressed-tensors matrix consists of. `scale_NG` is [N, groups], or [1] or [1, 1] for all.

    `zero` is as the file has it: int8 [N, groups], or int32 packed along N.
    """

    codes: npt.NDArray[Any]
    scale: FloatView
    zero: npt.NDArray[Any] | None
    g_idx: Words | None


class CompressedMatrix:
    """compressed-tensors' pack-quantized layout (int32 words, 4 or 8 bits), or its plain int8."""

    def __init__(self, name: str, arrays: CompressedArrays, shape: tuple[int, int]) -> None:
        self.shape = shape
        outputs, columns = shape
        self.bits = arrays.codes.itemsize * 8 * arrays.codes.shape[-1] // columns if columns else 0
        if self.bits not in (4, 8):
            raise unsupported_model(f"{name}: compressed-tensors with {self.bits} bits is not supported (4 and 8 are).")
        expect(f"{name}: codes", arrays.codes.shape, (outputs, columns * self.bits // 8 // arrays.codes.itemsize))
        groups = max(arrays.scale.array.size // outputs, 1)
        if arrays.scale.array.size not in (1, outputs * groups):
            raise unsupported_model(
                f"{name}: {arrays.scale.array.size} scales for {outputs} outputs are not supported."
            )
        self.form = Form(
            self.bits, checked_group(name, columns, groups), zeros=self.bits == 4 or arrays.zero is not None
        )
        self._groups = groups
        self._zero = None if arrays.zero is None else self._unpacked_zeros(name, arrays.zero)
        has_order = arrays.g_idx is not None and len(arrays.g_idx) and arrays.g_idx[0] >= 0
        self.order_K = order_of(name, arrays.g_idx, self.form.group) if has_order and arrays.g_idx is not None else None
        self._arrays = arrays

    def read(self, out: Grouped) -> None:
        """Fill `out`, columns in `order_K`."""
        plain = self._arrays.codes.dtype == np.int8
        for start, stop in _row_chunks(self.shape[0], self.shape[1]):
            codes = self._arrays.codes[start:stop]
            if plain:
                out.codes[start:stop] = codes if self.order_K is None else codes[:, self.order_K]
            else:
                out.codes[start:stop] = _ordered(codes.view(np.uint8), self.bits, self.order_K)
        out.scale_NG[:] = self._arrays.scale.fp32().reshape(-1, self._groups)
        # Codes of 4 bits stay offset by 8, so that is what their zero point is measured from.
        offset = 8 if self.bits == 4 else 0
        _store_zeros(out, np.full(1, offset) if self._zero is None else self._zero + np.int16(offset))

    def _unpacked_zeros(self, name: str, zero: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
        """Zero points of signed codes, int16 [N or 1, groups]."""
        if zero.dtype == np.int8:
            return zero.reshape(-1, self._groups).astype(np.int16)
        words = -(-self.shape[0] * self.bits // 32)
        expect(f"{name}.weight_zero_point", zero.shape, (words, self._groups))
        packed = np.ascontiguousarray(zero.T).view(np.uint8)
        codes = interleaved(packed) if self.bits == 4 else packed
        half = np.int16(1 << self.bits - 1)
        return codes[:, : self.shape[0]].T.astype(np.int16) - half
