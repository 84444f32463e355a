"""Projection y = x @ W.T + b by 16-bit weights in one order of summation, so that a row's bits do not depend on its company.

Every output is one chain of matrix instructions over ascending k, each adding 16 columns to an fp32 accumulator: no split of K,
no partial sums, whatever the number of rows. `BASE` is the tile that defines the result. A smaller tile for few rows runs the
same chain, cut to other widths; it is used only where this process has seen it give the same bits (`agreeing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import torch
import triton.language as tl
from torch import Tensor

from inference_stack.ops.triton.cards import room
from inference_stack.ops.triton.kernel import Shipped, interpreting, kernel_for_any

T = TypeVar("T")

PROOF_ROWS: Final = 64
"""Rows on which tiles are compared."""
BAND: Final = 8
"""Tiles of rows that are computed together, so that the weights they share are still in the second-level cache."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A program's rows of x and outputs, columns read at once, and how it runs."""

    rows: int
    outputs: int
    depth: int
    warps: int
    stages: int

    def programs(self, rows: int, outputs: int) -> int:
        """How many of them a product takes."""
        return -(-rows // self.rows) * -(-outputs // self.outputs)


SHORT: Final = Tile(64, 32, 64, 4, 9)
NARROW: Final = Tile(128, 64, 64, 8, 4)
BASE: Final = Tile(128, 128, 64, 8, 3)
WIDE: Final = Tile(128, 256, 64, 8, 3)
TILES: Final = (SHORT, NARROW, BASE, WIDE)
SHORT_STAGES: Final = 6
"""Of the shortest tile, where a program may have little shared memory."""
BUSY: Final = 120
"""Programs below which a smaller tile is taken: a large GPU has 132 processors."""


def tile_for(tiles: tuple[Tile, ...], rows: int, outputs: int) -> Tile:
    """The shortest tile for as many rows as it has; for more, the largest that keeps a large GPU busy."""
    if rows <= tiles[0].rows == SHORT.rows:
        return tiles[0]
    busy = [tile for tile in tiles if tile.programs(rows, outputs) >= BUSY]
    return busy[-1] if busy else max(tiles, key=lambda tile: tile.programs(rows, outputs))


def agreeing(tiles: Iterable[T], base: T, run: Callable[[T], Tensor]) -> tuple[T, ...]:
    """Of tiles, those whose result on `PROOF_ROWS` rows has the bits of the base's, which is always among them."""
    if interpreting():
        return (base,)
    wanted = run(base)
    return tuple(tile for tile in tiles if tile == base or torch.equal(run(tile), wanted))


@kernel_for_any("rows")
def gemm_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    depth: tl.tensor,
    x_stride: tl.tensor,
    TILE_T: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    BANDED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN: tl.constexpr,
) -> None:
    """One tile of y [rows, outputs], contiguous. `weight` [outputs, depth] is contiguous; `EVEN`: TILE_K divides depth."""
    tiles_t, tiles_n = tl.cdiv(rows, TILE_T), tl.cdiv(outputs, TILE_N)
    program = tl.program_id(0)
    first_t = program // (BANDED * tiles_n) * BANDED
    band = tl.minimum(tiles_t - first_t, BANDED)
    within = program % (BANDED * tiles_n)
    row_t = (first_t + within % band) * TILE_T + tl.arange(0, TILE_T)
    row_n = within // band * TILE_N + tl.arange(0, TILE_N)
    is_t, is_n = row_t < rows, row_n < outputs
    k = tl.arange(0, TILE_K)
    x_at = x + row_t.to(tl.int64)[:, None] * x_stride + k[None, :]
    w_at = weight + row_n.to(tl.int64)[None, :] * depth + k[:, None]
    sums = tl.zeros([TILE_T, TILE_N], tl.float32)
    for start in range(0, depth, TILE_K):
        if EVEN:
            x_TK = tl.load(x_at + start, mask=is_t[:, None], other=0.0)
            w_KN = tl.load(w_at + start, mask=is_n[None, :], other=0.0)
        else:
            inside = k < depth - start
            x_TK = tl.load(x_at + start, mask=is_t[:, None] & inside[None, :], other=0.0)
            w_KN = tl.load(w_at + start, mask=is_n[None, :] & inside[:, None], other=0.0)
        sums = tl.dot(x_TK, w_KN, sums, input_precision="ieee")
    if HAS_BIAS:
        sums += tl.load(bias + row_n, mask=is_n, other=0.0).to(tl.float32)[None, :]
    y_at = y + row_t.to(tl.int64)[:, None] * outputs + row_n[None, :]
    tl.store(y_at, sums.to(y.dtype.element_ty), mask=is_t[:, None] & is_n[None, :])


def gemm(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, y_TN: Tensor, tile: Tile) -> None:
    """y = x @ W.T + b on one tile. x has neighbouring columns next to each other; x, W and y have one type."""
    rows, depth = x_TK.shape
    outputs = weight_NK.shape[0]
    gemm_kernel[(tile.programs(rows, outputs),)](
        x_TK, weight_NK, y_TN if bias_N is None else bias_N, y_TN, rows, outputs, depth, x_TK.stride(0),
        tile.rows, tile.outputs, tile.depth, BAND, bias_N is not None, depth % tile.depth == 0,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def tiles_of(device: torch.device) -> tuple[Tile, ...]:
    """The tiles that a device has registers and shared memory for: of the widest only Hopper's matrix instructions leave enough."""
    short = SHORT if room(device).roomy else replace(SHORT, stages=SHORT_STAGES)
    hopper = device.type != "cuda" or (torch.version.hip is None and torch.cuda.get_device_capability(device)[0] == 9)
    return (short, NARROW, BASE, WIDE) if hopper else (short, NARROW, BASE)


def tiles_for(weight_NK: Tensor) -> tuple[Tile, ...]:
    """The tiles that give this weight's products the bits that define them."""
    draw = torch.Generator().manual_seed(0)
    x_TK = torch.randn(PROOF_ROWS, weight_NK.shape[1], generator=draw).to(weight_NK.device, weight_NK.dtype)

    def run(tile: Tile) -> Tensor:
        y_TN = torch.empty(PROOF_ROWS, weight_NK.shape[0], dtype=x_TK.dtype, device=x_TK.device)
        gemm(x_TK, weight_NK, None, y_TN, tile)
        return y_TN

    return agreeing(tiles_of(weight_NK.device), BASE, run)


def _shipped(tile: Tile, bias: bool = False, even: bool = True, archs: tuple[int, ...] = (80, 89, 90)) -> Shipped:
    pointers = dict.fromkeys(("x", "weight", "bias", "y"), "*bf16")
    return Shipped(
        name=f"gemm {tile.rows}×{tile.outputs}{' bias' if bias else ''}{'' if even else ' uneven'}",
        kernel=gemm_kernel,
        signature=pointers | dict.fromkeys(("rows", "outputs", "depth", "x_stride"), "i32"),
        constants={
            "TILE_T": tile.rows, "TILE_N": tile.outputs, "TILE_K": tile.depth, "BANDED": BAND, "HAS_BIAS": bias, "EVEN": even,
        },
        aligned=(*pointers, "outputs", "depth", "x_stride"),
        num_warps=tile.warps,
        num_stages=tile.stages,
        wgmma=True,
        overlap=True,
        archs=archs,
    )  # fmt: skip


SHIPPED: Final = (
    *(_shipped(tile, even=even, archs=(90,)) for tile in (SHORT, WIDE) for even in (True, False)),
    _shipped(replace(SHORT, stages=SHORT_STAGES), archs=(80, 89)),
    _shipped(NARROW),
    _shipped(BASE),
    _shipped(BASE, bias=True),
)
