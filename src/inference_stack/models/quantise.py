"""Chooses 4-bit or 8-bit codes for a matrix so that its products change little: the numbers, not their layout in a file.

    fit      for each group of columns the scale and zero point of least squared error, out of a grid of clipped ranges
    rounding one column after another, each column's error made up for by those that follow (GPTQ, arXiv:2210.17323)

Columns count by what is fed to them. Without such knowledge all count alike, and rounding is to nearest. Knows tensors only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final

import torch
from torch import Tensor

from inference_stack.core.errors import invalid, unsupported_model

SHRINKS: Final = tuple(1.0 - 0.04 * step for step in range(12))
"""Ranges that are tried, as parts of the whole range of a group."""
REFINEMENTS: Final = 2
"""How often zero points beside the best one are tried, and the scale that is best for the codes at hand."""
SIGNIFICANT_BITS: Final = {4: 7, 8: 8}
"""Of scales. So they are exact in bf16 and fp16 alike, and with 4 bits the product of scale and zero point is exact in fp16."""
SMALLEST: Final = 2.0**-17
"""Of scales: no bit of a smaller one would be certain in fp16."""
DAMPING: Final = 0.01
"""Part of the mean importance that every column is given, because activations that were seen are only a sample."""
ROWS: Final = 512
"""Rows to a part; also what is a unit of parallel work."""
CHUNK: Final = 1 << 18
"""Weights that are worked on at a time, so that intermediate values stay in cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A form to quantise to. `group`: columns that share a scale, 0 for all of a row. `zeros`: groups have zero points."""

    bits: int
    group: int
    zeros: bool

    @property
    def name(self) -> str:
        """As the command line spells it."""
        return f"w{self.bits}g{self.group}" if self.group else f"w{self.bits}"

    def group_of(self, name: str, columns: int) -> int:
        """Columns to a scale in a matrix of this width. Raises `unsupported_model` where groups do not divide it."""
        group = self.group or columns
        if columns % group or columns * self.bits % 32:
            sizes = [size for size in (32, 64, 128) if columns % size == 0]
            advice = (
                f"use --to {' or '.join(f'w4g{size}' for size in reversed(sizes))}" if sizes else "leave it as it is"
            )
            raise unsupported_model(f"{name} has {columns} inputs, which {self.name} does not divide; {advice}.")
        return group


TARGETS: Final = ("w4g64", "w4g128", "w4g32", "w8")


def target(name: str, symmetric: bool = False) -> Target:
    """The form with this name; 4 bits have zero points unless `symmetric`. Raises `invalid` for names not in `TARGETS`."""
    match = re.fullmatch(r"w([48])(?:g(\d+))?", name)
    if match is None or name not in TARGETS:
        raise invalid(f"--to: expected one of {', '.join(TARGETS)}, not {name!r}", param="to")
    bits = int(match[1])
    return Target(bits=bits, group=int(match[2] or 0), zeros=bits == 4 and not symmetric)


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """A quantised matrix: w[n, k] = (code[n, k] - zero[n, k // group]) · scale[n, k // group].

    `code_NK` uint8 counts from 0; `scale_NG` fp32, `zero_NG` uint8 on the scale of codes (half their range where symmetric).
    """

    bits: int
    code_NK: Tensor
    scale_NG: Tensor
    zero_NG: Tensor

    def dequantised(self) -> Tensor:
        """The numbers, fp32 [N, K]."""
        code_NGX = self.code_NK.to(torch.float32).unflatten(1, (self.scale_NG.shape[1], -1))
        return ((code_NGX - self.zero_NG.to(torch.float32)[..., None]) * self.scale_NG[..., None]).flatten(1)


class Curvature:
    """Second moments of a projection's inputs, Σ x xᵀ, block by block of neighbouring columns: fp32 [block, block]."""

    def __init__(self, moments: Sequence[Tensor]) -> None:
        self.moments = tuple(moments)

    @cached_property
    def blocks(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """For every block what each column counts, and the upper Cholesky factor of the damped moments' inverse."""
        return tuple(
            (weights, _factor(moment, weights)) for moment in self.moments for weights in [_importance(moment)]
        )


@dataclass(frozen=True, slots=True)
class _Grid:
    """Scales and zero points [...], and the codes' range."""

    scale: Tensor
    zero: Tensor
    top: int

    def steps(self, w: Tensor) -> Tensor:
        """Codes less zero points of weights [..., X], as floats."""
        zero = self.zero[..., None]
        return (w * (1 / self.scale)[..., None]).round_().clamp_(-zero, self.top - zero)


def quantise(
    w_NK: Tensor, target: Target, group: int, curvature: Curvature | None = None, pool: Executor | None = None
) -> Codes:
    """Codes for a matrix, fp32, in groups of `group` columns. With `curvature`, for the inputs that it tells of.

    Rows do not depend on one another; `pool` works on several parts at a time, whose size does not depend on it.
    """
    one = partial(_quantise_rows, target=target, group=group, blocks=None if curvature is None else curvature.blocks)
    return _joined(list((pool.map if pool else map)(one, w_NK.split(ROWS))), dim=0)


def nearest(w_NK: Tensor, target: Target, group: int) -> Codes:
    """Codes by rounding to nearest over each group's whole range: what `quantise` is to be compared with."""
    return _codes(w_NK, target, _Ranges(w_NK.unflatten(1, (-1, group)), target).grid(1.0))


def _quantise_rows(w_NK: Tensor, target: Target, group: int, blocks: tuple[tuple[Tensor, Tensor], ...] | None) -> Codes:
    if blocks is None:
        return _codes(w_NK, target, _fitted(w_NK.unflatten(1, (-1, group)), target, None))
    w_NK = w_NK.clone()
    parts, start = [], 0
    for importance_B, factor_BB in blocks:
        stop = start + len(importance_B)
        parts.append(_compensated(w_NK[:, start:stop], target, group, importance_B, factor_BB))
        start = stop
    return _joined(parts)


def block_for(group: int, columns: int, most: int) -> int:
    """Columns to a block of `Curvature`: whole groups, as many as fit `most`; a whole row where that is one group."""
    return min(max(most // group, 1) * group, columns)


def _codes(w_NK: Tensor, target: Target, grid: _Grid) -> Codes:
    groups = grid.scale.shape[1]
    code_NK = torch.empty(w_NK.shape, dtype=torch.uint8)
    for start, stop in _row_chunks(*w_NK.shape):
        part = _Grid(grid.scale[start:stop], grid.zero[start:stop], grid.top)
        steps_NGX = part.steps(w_NK[start:stop].unflatten(1, (groups, -1)))
        code_NK[start:stop] = (steps_NGX + part.zero[..., None]).flatten(1).to(torch.uint8)
    return Codes(bits=target.bits, code_NK=code_NK, scale_NG=grid.scale, zero_NG=grid.zero.to(torch.uint8))


def _row_chunks(rows: int, columns: int) -> list[tuple[int, int]]:
    step = max(CHUNK // columns, 1)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def _fitted(w_NGX: Tensor, target: Target, importance_GX: Tensor | None) -> _Grid:
    """The grid of least squared error of every group."""
    rows, groups, width = w_NGX.shape
    scale_NG, zero_NG = torch.empty(rows, groups), torch.empty(rows, groups)
    for start, stop in _row_chunks(rows, groups * width):
        best = _Search(w_NGX[start:stop], target, importance_GX).run()
        scale_NG[start:stop], zero_NG[start:stop] = best.scale, best.zero
    return _Grid(scale_NG, zero_NG, 2**target.bits - 1)


class _Ranges:
    """The ranges of some groups [N, G, X], which always have zero in them, and grids over parts of these."""

    def __init__(self, w_NGX: Tensor, target: Target) -> None:
        self._target, self._top = target, 2**target.bits - 1
        low, high = w_NGX.amin(-1).clamp_max(0), w_NGX.amax(-1).clamp_min(0)
        if target.zeros:
            self._span, self._middle = high - low, (high + low) / 2
        else:
            # One more code lies below the middle than above it, which has to reach the largest weight.
            self._span, self._middle = torch.maximum(high, -low) * (self._top / (self._top // 2)), torch.zeros_like(low)

    def grid(self, shrink: float) -> _Grid:
        """The grid over this part of each range, around its middle."""
        scale = _rounded(self._span * (shrink / self._top), self._target.bits)
        if not self._target.zeros:
            return _Grid(scale, torch.full_like(scale, self._top // 2 + 1), self._top)
        return _Grid(scale, (self._top / 2 - self._middle / scale).round_().clamp_(0, self._top), self._top)


class _Search:
    """The best grid so far for some groups [N, G, X]."""

    def __init__(self, w_NGX: Tensor, target: Target, importance_GX: Tensor | None) -> None:
        self._w, self._target = w_NGX, target
        self._importance = importance_GX
        self._best = _Ranges(w_NGX, target).grid(1.0)
        self._error = torch.full(w_NGX.shape[:2], torch.inf)

    def run(self) -> _Grid:
        """Try clipped ranges, then improve what was best."""
        ranges = _Ranges(self._w, self._target)
        for shrink in SHRINKS:
            self._offer(ranges.grid(shrink))
        for _ in range(REFINEMENTS):
            if self._target.zeros:
                for change in (-1, 1):
                    zero = (self._best.zero + change).clamp_(0, self._best.top)
                    self._offer(_Grid(self._best.scale, zero, self._best.top))
            self._offer(_Grid(self._matched(), self._best.zero, self._best.top))
        return self._best

    def _matched(self) -> Tensor:
        """The scale that is best for the codes that the best grid gives."""
        steps = self._best.steps(self._w)
        weighted = steps if self._importance is None else steps * self._importance
        squares = (weighted * steps).sum(-1)
        scale = torch.where(squares > 0, (weighted * self._w).sum(-1) / squares, self._best.scale)
        return _rounded(scale, self._target.bits)

    def _offer(self, grid: _Grid) -> None:
        square = grid.steps(self._w).mul_(grid.scale[..., None]).sub_(self._w).square_()
        error = (square if self._importance is None else square.mul_(self._importance)).sum(-1)
        better = error < self._error
        self._error = torch.where(better, error, self._error)
        scale, zero = torch.where(better, grid.scale, self._best.scale), torch.where(better, grid.zero, self._best.zero)
        self._best = _Grid(scale, zero, grid.top)


def _rounded(scale: Tensor, bits: int) -> Tensor:
    """Scales with `SIGNIFICANT_BITS`."""
    mantissa, exponent = torch.frexp(scale.clamp_min(SMALLEST))
    whole = 2.0 ** SIGNIFICANT_BITS[bits]
    return torch.ldexp((mantissa * whole).round_() / whole, exponent)


def _compensated(w_NB: Tensor, target: Target, group: int, importance_B: Tensor, factor_BB: Tensor) -> Codes:
    """Codes for some columns, which are changed as errors are passed on."""
    parts = []
    for start in range(0, w_NB.shape[1], group):
        stop = start + group
        w_NX = w_NB[:, start:stop]
        grid = _fitted(w_NX[:, None], target, importance_B[None, start:stop])
        codes, error_NX = _one_by_one(w_NX, target, grid, factor_BB[start:stop, start:stop])
        w_NB[:, stop:] -= error_NX @ factor_BB[start:stop, stop:]
        parts.append(codes)
    return _joined(parts)


def _importance(moment_BB: Tensor) -> Tensor:
    diagonal = moment_BB.diagonal()
    mean = diagonal.mean()
    return diagonal + DAMPING * mean if mean > 0 else torch.ones_like(diagonal)


def _factor(moment_BB: Tensor, importance_B: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped moments."""
    damped = moment_BB.to(torch.float64).clone()
    damped.diagonal().copy_(importance_B)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).to(torch.float32)


def _one_by_one(w_NX: Tensor, target: Target, grid: _Grid, factor_XX: Tensor) -> tuple[Codes, Tensor]:
    """Codes of one group, and each column's error in units of what its successors are to make up for."""
    w_XN = w_NX.T.contiguous()
    scale_N, zero_N = grid.scale[:, 0], grid.zero[:, 0]
    code_XN, error_XN = torch.empty(w_XN.shape, dtype=torch.uint8), torch.empty_like(w_XN)
    low_N, high_N, inverse_N = -zero_N, grid.top - zero_N, 1 / scale_N
    for k in range(w_XN.shape[0]):
        steps_N = (w_XN[k] * inverse_N).round_().clamp_(low_N, high_N)
        code_XN[k] = steps_N + zero_N
        error_XN[k] = (w_XN[k] - steps_N * scale_N) / factor_XX[k, k]
        w_XN[k + 1 :].addr_(factor_XX[k, k + 1 :], error_XN[k], alpha=-1)
    zero_NG = grid.zero.to(torch.uint8)
    codes = Codes(bits=target.bits, code_NK=code_XN.T.contiguous(), scale_NG=grid.scale, zero_NG=zero_NG)
    return codes, error_XN.T


def _joined(parts: Sequence[Codes], dim: int = 1) -> Codes:
    """Parts of a matrix side by side, or one below the other."""
    return Codes(
        bits=parts[0].bits,
        code_NK=torch.cat([part.code_NK for part in parts], dim),
        scale_NG=torch.cat([part.scale_NG for part in parts], dim),
        zero_NG=torch.cat([part.zero_NG for part in parts], dim),
    )
