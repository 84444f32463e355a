"""Dense projection y = x @ W.T + b in fp32, on fixed tiles of rows so that a row's bits do not depend on its company.

A matrix product's summation order may change with the number of rows. Here every product has one of a few row counts; the
smallest, 8, defines the result, and a larger one is used only where it was seen to give the same bits for this width of
weight in this process (`matching_tiles`). Rows that fill a tile up are zeros. The bias is added afterwards.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor

from inference_stack.ops.api import Linear
from inference_stack.ops.workspace import Workspace

BASE_TILE: Final = 8
TILES: Final = (8, 16, 32, 64, 128, 256)
TILE_WORK: Final = 1 << 31
"""Multiply-adds above which a tile size is not tried: such tiles gain nothing more, and trying them costs start-up time."""

Product = Callable[[Tensor], Tensor]


class NotInvariant(RuntimeError):
    """This build of torch changes a row's result with its neighbours even within a tile of fixed size."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A weight ready for use: its product x [M, K] -> [M, N], the row tiles it may run on, and its width N."""

    product: Product
    tiles: tuple[int, ...]
    width: int
    packed_bytes: int
    watch: weakref.ref[Tensor]


def pack(weight_NK: Tensor) -> Tensor:
    """The weight in the CPU library's own blocked layout (fp32), shape unchanged: what `TiledLinear` makes of a dense one.

    A loader may store this in `Linear.weight_NK` instead of the dense tensor, which saves keeping both.
    """
    dense = weight_NK.detach().to(torch.float32).contiguous()
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(dense, BASE_TILE)
    return packed


def can_pack(weight_NK: Tensor) -> bool:
    """Whether this process and the weight's device have the blocked layout."""
    return weight_NK.device.type == "cpu" and torch.backends.mkldnn.is_available()


class TiledLinear:
    """`Ops.linear`. Weights are packed on first use (a measuring step does it at start-up) and forgotten with their tensor."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._prepared: dict[int, _Prepared] = {}
        self._tiles: dict[tuple[int, int, bool], tuple[int, ...]] = {}

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed copies that this object made, for the ledger."""
        return sum(prepared.packed_bytes for prepared in self._prepared.values())

    def __call__(self, x_TK: Tensor, weight: Linear) -> Tensor:
        """y_TN fp32 = x @ W.T + b."""
        prepared = self._prepared.get(id(weight.weight_NK)) or self._prepare(weight.weight_NK)
        rows = x_TK.shape[0]
        y_TN = self._workspace.take_like(x_TK, (rows, prepared.width), torch.float32)
        start = 0
        for tile in tiling(rows, prepared.tiles):
            stop = min(start + tile, rows)
            part = prepared.product(_padded(x_TK[start:stop], tile))[: stop - start]
            if weight.bias_N is None:
                y_TN[start:stop].copy_(part)
            else:
                torch.add(part, weight.bias_N, out=y_TN[start:stop])
            start = stop
        return y_TN

    def prepare(self, weight: Linear) -> None:
        """Keep the weight packed, and only packed."""
        if can_pack(weight.weight_NK) and not weight.weight_NK.is_mkldnn:
            weight.weight_NK = pack(weight.weight_NK)

    def _prepare(self, weight_NK: Tensor) -> _Prepared:
        key = id(weight_NK)
        packed_bytes = 0
        if can_pack(weight_NK):
            packed = weight_NK if weight_NK.is_mkldnn else pack(weight_NK)
            packed_bytes = 0 if weight_NK.is_mkldnn else weight_NK.numel() * 4
            product = _packed_product(packed)
        else:
            product = _dense_product(weight_NK.detach())
        width, depth = weight_NK.shape
        shape = (width, depth, can_pack(weight_NK))
        if shape not in self._tiles:
            self._tiles[shape] = matching_tiles(product, depth, width, weight_NK.device)
        forget = self._prepared.pop
        watch = weakref.ref(weight_NK, lambda _: forget(key, None))
        prepared = _Prepared(product, self._tiles[shape], width, packed_bytes, watch)
        self._prepared[key] = prepared
        return prepared


def _packed_product(packed_NK: Tensor) -> Product:
    run: Any = torch.ops.mkldnn._linear_pointwise
    return lambda x_MK: run(x_MK, packed_NK, None, "none", [], "")


def _dense_product(weight_NK: Tensor) -> Product:
    return lambda x_MK: torch.mm(x_MK, weight_NK.to(torch.float32).t())


def _padded(x_MK: Tensor, tile: int) -> Tensor:
    """The rows as fp32, contiguous, filled up with zero rows to `tile`."""
    rows = x_MK.shape[0]
    if rows == tile:
        return x_MK.to(torch.float32).contiguous()
    full = torch.zeros(tile, x_MK.shape[1], dtype=torch.float32, device=x_MK.device)
    full[:rows].copy_(x_MK)
    return full


@lru_cache(maxsize=4096)
def tiling(rows: int, tiles: tuple[int, ...]) -> tuple[int, ...]:
    """Tile sizes that cover `rows`: the largest while it fits, then the smallest that holds the rest without much waste."""
    chosen: list[int] = []
    while rows > 0:
        fits = max((tile for tile in tiles if tile <= rows), default=tiles[0])
        holds = min((tile for tile in tiles if tile >= rows), default=tiles[-1])
        chosen.append(holds if holds >= rows and (holds <= 32 or holds * 4 <= rows * 5) else fits)
        rows -= chosen[-1]
    return tuple(chosen)


def matching_tiles(product: Product, depth: int, width: int, device: torch.device) -> tuple[int, ...]:
    """The row tiles whose product gives every row the bits that the smallest tile gives it. Raises NotInvariant."""
    tiles = [tile for tile in TILES if tile == BASE_TILE or tile * depth * width <= TILE_WORK]
    generator = torch.Generator().manual_seed(0)
    x_MK = torch.randn(tiles[-1], depth, generator=generator).to(device)
    base = torch.cat([product(part) for part in x_MK.split(BASE_TILE)])
    verify_invariance(product, x_MK[:BASE_TILE], base[:BASE_TILE])
    return tuple(tile for tile in tiles if torch.equal(product(x_MK[:tile]), base[:tile]))


def verify_invariance(product: Product, x_MK: Tensor, y_MN: Tensor) -> None:
    """Checks that each row of `x`, moved to another place of a tile among zero rows, keeps its bits. Raises NotInvariant."""
    for row in range(x_MK.shape[0]):
        place = (row * 5 + 3) % x_MK.shape[0]
        alone = torch.zeros_like(x_MK)
        alone[place] = x_MK[row]
        if not torch.equal(product(alone)[place], y_MN[row]):
            raise NotInvariant(f"matrix products of {x_MK.shape[0]} rows depend on a row's place or neighbours here")
