"""Random GGUF blocks, and canonical matrices as plain numbers, written without the reader."""

from __future__ import annotations

import numpy as np

from inference_stack.artifacts.canonical import Grouped
from inference_stack.artifacts.gguf import SUPPORTED

SCALES_AT = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2],
             "Q6_K": [208]}  # fmt: skip
"""Bytes of a block where an fp16 number begins."""


def random_blocks(type_id: int, rows: int, columns: int, size: float = 1.0, seed: int = 0) -> np.ndarray:
    """Random rows of a quantised type, uint8 [rows, bytes], with fp16 numbers of about `size`."""
    packing, random = SUPPORTED[type_id], np.random.default_rng([type_id, seed])
    raw = random.integers(0, 256, (rows * columns // packing.elements, packing.nbytes), dtype=np.uint8)
    for at in SCALES_AT[packing.name]:
        numbers = (random.standard_normal((len(raw), 1)) * size).astype("<f2")
        raw[:, at : at + 2] = numbers.view(np.uint8)
    return raw.reshape(rows, -1)


def dense(matrix: Grouped) -> np.ndarray:
    """A canonical matrix as fp32, columns as stored."""
    codes = matrix.codes
    if matrix.form.bits == 4:
        codes = np.stack((codes & 15, codes >> 4), -1).reshape(len(codes), -1)
    columns = np.arange(codes.shape[1]) // matrix.form.group
    found = codes.astype(np.float32) * matrix.scale_NG.astype(np.float32)[:, columns]
    if matrix.zero_NG is not None:
        found += matrix.zero_NG.astype(np.float32)[:, columns]
    return found
