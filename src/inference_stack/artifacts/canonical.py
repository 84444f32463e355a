"""Matrices quantised by groups, as numpy arrays in the one form that every 4-bit and 8-bit checkpoint is brought to.

    w[n, k] = code[n, k] · scale[n, k // group] + zero[n, k // group]

Readers of formats fill arrays that their caller owns; here is what the forms have in common, and how matrices of different
forms become one without losing anything. Knows arrays; it knows no format and no file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inference_stack.core.errors import unsupported_model

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Order = npt.NDArray[np.int32]

GROUP_MULTIPLE = 16
CHUNK_BYTES = 1 << 18
"""How much readers convert at a time, so that intermediate values stay in cache and are never as large as a matrix."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a matrix is quantised: `bits` 4 or 8, `group` columns to a scale, with or without `zeros`.

    `half`: scales and zeros are fp16 by nature; otherwise they are computed, in fp32.
    """

    bits: int
    group: int
    zeros: bool
    half: bool = False

    @property
    def name(self) -> str:
        """As the field writes it: w4g32."""
        return f"w{self.bits}g{self.group}"


@dataclass(frozen=True, slots=True)
class Grouped:
    """A matrix [N, K] in a form. `codes`: uint8 [N, K/2], low nibble first, with 4 bits; int8 [N, K] with 8.

    `scale_NG` and `zero_NG` (None where the form has no zeros) are [N, K/group], fp16 where the form says `half`, else fp32.
    """

    form: Form
    codes: npt.NDArray[Any]
    scale_NG: npt.NDArray[Any]
    zero_NG: npt.NDArray[Any] | None

    def rows(self, start: int, stop: int) -> Grouped:
        """Some rows, as a view."""
        zero_NG = None if self.zero_NG is None else self.zero_NG[start:stop]
        return Grouped(self.form, self.codes[start:stop], self.scale_NG[start:stop], zero_NG)


@dataclass(frozen=True, slots=True)
class FloatView:
    """Numbers in a file, widened only when they are wanted. `bf16`: the array holds bfloat16's bits, which numpy does not know."""

    array: npt.NDArray[Any]
    bf16: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.array.shape

    def fp32(self) -> Floats:
        """The numbers."""
        if self.bf16:
            return (self.array.astype(np.uint32) << 16).view(np.float32)
        return self.array.astype(np.float32)


def empty(form: Form, rows: int, columns: int) -> Grouped:
    """A matrix to be filled."""
    codes = np.empty((rows, columns // 2), np.uint8) if form.bits == 4 else np.empty((rows, columns), np.int8)
    shape, dtype = (rows, columns // form.group), np.float16 if form.half else np.float32
    return Grouped(form, codes, np.empty(shape, dtype), np.empty(shape, dtype) if form.zeros else None)


def common_form(forms: Sequence[Form]) -> Form:
    """The narrowest form that holds matrices of all these forms exactly."""
    return Form(
        bits=max(form.bits for form in forms),
        group=math.gcd(*(form.group for form in forms)),
        zeros=any(form.zeros for form in forms),
        half=all(form.half for form in forms),
    )


def widen(source: Grouped, out: Grouped) -> None:
    """Fill `out`, whose form holds the source's exactly: codes 0 … 15 fit 8 bits, scales repeat over smaller groups."""
    if source.form.bits == out.form.bits:
        out.codes[:] = source.codes
    else:
        out.codes[:, 0::2] = source.codes & 15
        out.codes[:, 1::2] = source.codes >> 4
    times = source.form.group // out.form.group
    out.scale_NG[:] = np.repeat(source.scale_NG, times, 1)
    if out.zero_NG is not None:
        out.zero_NG[:] = 0 if source.zero_NG is None else np.repeat(source.zero_NG, times, 1)


def checked_group(name: str, columns: int, groups: int) -> int:
    """Columns to a scale. Raises `unsupported_model` where that is not a multiple of 16."""
    group = columns // groups if groups and columns % groups == 0 else 0
    if group % GROUP_MULTIPLE or not group:
        raise unsupported_model(
            f"{name}: {groups} scales for {columns} inputs; only equal groups of a multiple of {GROUP_MULTIPLE} are "
            f"supported."
        )
    return group


def order_of(name: str, g_idx: npt.NDArray[Any], group: int) -> Order | None:
    """The columns sorted by the group they belong to, for checkpoints quantised in order of activation size.

    None where they lie in order already. Raises `unsupported_model` for groups of unequal size.
    """
    columns = len(g_idx)
    if group == columns or np.array_equal(g_idx, np.arange(columns) // group):
        return None
    if g_idx.min() < 0 or not np.array_equal(
        np.bincount(g_idx, minlength=columns // group), [group] * (columns // group)
    ):
        raise unsupported_model(f"{name}: the columns named by g_idx do not form groups of {group} each.")
    return np.argsort(g_idx, kind="stable").astype(np.int32)


def interleaved(packed: Bytes) -> Bytes:
    """Nibbles of uint8 [rows, B] as uint8 [rows, 2·B], low nibble first."""
    codes = np.empty((packed.shape[0], packed.shape[1] * 2), np.uint8)
    codes[:, 0::2] = packed & 15
    codes[:, 1::2] = packed >> 4
    return codes


def signed(codes: Bytes) -> npt.NDArray[np.int8]:
    """Codes 0 … 255 less 128."""
    return (codes ^ 128).view(np.int8)
