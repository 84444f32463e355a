"""Packs integer codes as AWQ, GPTQ and compressed-tensors do, one word at a time, independently of the readers.

`codes` are unsigned [N, K], `zeros` unsigned [N, G], `scales` [N, G]: w = (code - zero) · scale of the column's group.
"""

from __future__ import annotations

import numpy as np

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
Parts = dict[str, np.ndarray]


def words(values: np.ndarray, bits: int) -> np.ndarray:
    """Pack unsigned values along the last axis into int32 words, the first lowest; the last word is filled up with zeros."""
    each = 32 // bits
    padded = np.zeros((*values.shape[:-1], -(-values.shape[-1] // each) * each), np.int64)
    padded[..., : values.shape[-1]] = values
    runs = padded.reshape(*values.shape[:-1], -1, each)
    packed = sum(runs[..., i] << bits * i for i in range(each))
    return np.asarray(packed).astype(np.uint32).view(np.int32)


def awq(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> Parts:
    """AutoAWQ's GEMM layout."""

    def packed(values_XN: np.ndarray) -> np.ndarray:
        runs = values_XN.reshape(len(values_XN), -1, 8)[:, :, AWQ_ORDER]
        return words(runs.reshape(len(values_XN), -1), 4)

    return {"qweight": packed(codes.T), "qzeros": packed(zeros.T), "scales": scales.T.copy()}


def gptq(
    codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, g_idx: np.ndarray, bits: int = 4, less_one: bool = False
) -> Parts:
    """GPTQ's layout; `less_one`: its first format, which subtracts one from every field of the packed words."""
    qzeros = words(zeros.T, bits)
    if less_one:
        ones = int("1" * 8 if bits == 4 else "01" * 4, 16)
        qzeros = (qzeros.view(np.uint32) - np.uint32(ones)).view(np.int32)
    return {
        "qweight": words(codes, bits).T.copy(),
        "qzeros": qzeros,
        "scales": scales.T.copy(),
        "g_idx": g_idx.astype(np.int32),
    }


def pack_quantized(
    codes: np.ndarray, zeros: np.ndarray | None, scales: np.ndarray, g_idx: np.ndarray | None = None, bits: int = 4
) -> Parts:
    """compressed-tensors' pack-quantized layout, whose signed codes are offset by half their range, as ours are already."""
    parts = {"weight_packed": words(codes, bits), "weight_scale": scales, "weight_shape": np.array(codes.shape)}
    if zeros is not None:
        parts["weight_zero_point"] = words(zeros.T, bits).T.copy()
    if g_idx is not None:
        parts["weight_g_idx"] = g_idx.astype(np.int32)
    return parts


def int_quantized(codes: np.ndarray, zeros: np.ndarray | None, scales: np.ndarray) -> Parts:
    """compressed-tensors' plain int8."""
    parts = {"weight": (codes.astype(np.int16) - 128).astype(np.int8), "weight_scale": scales}
    if zeros is not None:
        parts["weight_zero_point"] = (zeros.astype(np.int16) - 128).astype(np.int8)
    return parts


def plain(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, g_idx: np.ndarray) -> np.ndarray:
    """The numbers, fp32 [N, K]."""
    found: np.ndarray = (codes.astype(np.float64) - zeros[:, g_idx]) * scales.astype(np.float64)[:, g_idx]
    return found.astype(np.float32)
