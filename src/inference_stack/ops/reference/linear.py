"""Projection y = x @ W.T + b in fp32, on fixed tiles of rows so that a row's bits do not depend on its company.

A matrix product's summation order may change with the number of rows. Here every product has one of a few row counts; the
smallest, 8, defines the result, and a larger one is used only where it was seen to give the same bits for this width of
weight in this process (`matching_tiles`). Rows that fill a tile up are zeros. The bias is added afterwards.
Quantised weights are dequantised to fp32 here, and multiply activations rounded as `quantised.py` defines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor

from inference_stack.ops.api import Linear, Quantised
from inference_stack.ops.reference.quantised import act_block, dequantise, rounded, rows_of
from inference_stack.ops.workspace import Workspace

BASE_TILE: Final = 8
TILES: Final = (8, 16, 32, 64, 128, 256)
TILE_WORK: Final = 1 << 31
"""Multiply-adds above which a tile size is not tried: such tiles gain nothing more, and trying them costs start-up time."""

Product = Callable[[Tensor], Tensor]


class NotInvariant(RuntimeError):
    """This build of torch changes a row's result with its neighbours even within a tile of fixed size."""


@dataclass(frozen=True, slots=True)
class TiledWeight:
    """A weight ready for use (`Prepared`): its product x [M, K] -> [M, N] and the row tiles it may run on.

    A quantised weight was dequantised; `block` says how activations are quantised for it, `order_K` in which order they come.
    `source` is the weight as loaded where `embed` needs it.
    """

    product: Product
    tiles: tuple[int, ...]
    shape: tuple[int, int]
    nbytes: int
    block: int | None = None
    order_K: Tensor | None = None
    source: Tensor | Quantised | None = None

    def rows(self, index_T: Tensor) -> Tensor:
        """Some rows of the weight, fp32 [T, K]. Raises RuntimeError when it was not loaded as a table."""
        if self.source is None:
            raise RuntimeError("this weight was not prepared to be looked up")
        if isinstance(self.source, Quantised):
            return rows_of(self.source, index_T)
        return self.source.index_select(0, index_T).to(torch.float32)

    def inputs(self, x_TK: Tensor) -> Tensor:
        """Activations as the product takes them."""
        if self.block is None:
            return x_TK
        return rounded(x_TK if self.order_K is None else x_TK[:, self.order_K.to(torch.int64)], self.block)


def pack(weight_NK: Tensor) -> Tensor:
    """The weight in the CPU library's own blocked layout (fp32), shape unchanged."""
    dense = weight_NK.detach().to(torch.float32).contiguous()
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(dense, BASE_TILE)
    return packed


def can_pack(weight_NK: Tensor) -> bool:
    """Whether this process and the weight's device have the blocked layout."""
    return weight_NK.device.type == "cpu" and torch.backends.mkldnn.is_available()


class TiledLinear:
    """`Ops.linear` and `Ops.prepare`. A weight that was not prepared is on first use."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._tiles: dict[tuple[int, int, bool], tuple[int, ...]] = {}

    def __call__(self, x_TK: Tensor, weight: Linear) -> Tensor:
        """y_TN fp32 = x @ W.T + b."""
        self.prepare(weight)
        prepared = weight.weight
        if not isinstance(prepared, TiledWeight):
            raise TypeError("the weight was prepared for another implementation")
        rows = x_TK.shape[0]
        y_TN = self._workspace.take_like(x_TK, (rows, prepared.shape[0]), torch.float32)
        x_TK, start = prepared.inputs(x_TK), 0
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
        """Keep the weight packed; the form it was loaded in stays only where `embed` reads it."""
        loaded = weight.weight
        if not isinstance(loaded, Tensor | Quantised):
            return
        quantised = isinstance(loaded, Quantised)
        dense_NK = _stored(loaded) if isinstance(loaded, Quantised) else loaded.detach()
        packed = pack(dense_NK) if can_pack(dense_NK) else None
        product = _dense_product(dense_NK) if packed is None else _packed_product(packed)
        kept = loaded if weight.looked_up and (quantised or packed is not None) else None
        product_bytes = dense_NK.nbytes if packed is None else dense_NK.numel() * 4
        weight.weight = TiledWeight(
            product=product,
            tiles=self._tiles_of(product, dense_NK, packed is not None),
            shape=(dense_NK.shape[0], dense_NK.shape[1]),
            nbytes=product_bytes + (kept.nbytes if kept is not None else 0),
            block=act_block(loaded.group) if isinstance(loaded, Quantised) else None,
            order_K=loaded.order_K if isinstance(loaded, Quantised) else None,
            source=kept if kept is not None or not weight.looked_up else dense_NK,
        )

    def _tiles_of(self, product: Product, dense_NK: Tensor, packed: bool) -> tuple[int, ...]:
        width, depth = dense_NK.shape
        shape = (width, depth, packed)
        if shape not in self._tiles:
            self._tiles[shape] = matching_tiles(product, depth, width, dense_NK.device)
        return self._tiles[shape]


def _stored(weight: Quantised) -> Tensor:
    """The dequantised weight fp32 [N, K] with columns as stored: activations are put in their order first."""
    return dequantise(replace(weight, order_K=None))


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
