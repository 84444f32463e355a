"""`Ops.linear` on GPUs: which product a weight gets, decided once, when it is prepared.

    dense         a library's product; deterministic: one order of summation (`gemm.py`)
    4 or 8 bits   widened in registers for few rows, written out for many (`w4a16.py`)
    float8        dense weights and activations rounded to e4m3, where asked for (`fp8.py`)

Activations are never quantised but for float8. One row of a dense product reads N·K·2 bytes, which is the floor of its time.
Knows forms of weights; what is inside a product is not its business.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Final, Protocol

import torch
from torch import Tensor

from inference_stack.ops.api import Linear, Quantised
from inference_stack.ops.triton import fp8, gemm, w4a16
from inference_stack.ops.triton.gemm import Tile
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace


class Product(Protocol):
    """A prepared weight that multiplies; see `Prepared`."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        ...

    def multiply(self, x_TK: Tensor, y_TN: Tensor) -> None:
        """y = x @ W.T + b, both in the type that the weight was prepared for."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseWeight:
    """A weight as it is, in the activations' type (`Prepared`). `tiles`: those of `gemm.py` that may be used; none: the library's
    product, whose order of summation depends on the number of rows."""

    weight_NK: Tensor
    bias_N: Tensor | None
    tiles: tuple[Tile, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.weight_NK.shape[0], self.weight_NK.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix."""
        return self.weight_NK.nbytes

    def rows(self, index_T: Tensor) -> Tensor:
        """Some rows of the weight, fp32 [T, K]."""
        return self.weight_NK.index_select(0, index_T).to(torch.float32)

    def multiply(self, x_TK: Tensor, y_TN: Tensor) -> None:
        """See `Product`."""
        if self.tiles:
            x_TK = x_TK if x_TK.stride(1) == 1 else x_TK.contiguous()
            tile = gemm.tile_for(self.tiles, x_TK.shape[0], y_TN.shape[1])
            gemm.gemm(x_TK, self.weight_NK, self.bias_N, y_TN, tile)
        elif self.bias_N is None:
            torch.mm(x_TK, self.weight_NK.t(), out=y_TN)
        else:
            torch.addmm(self.bias_N, x_TK, self.weight_NK.t(), out=y_TN)


class TritonLinear:
    """`Ops.linear` and `Ops.prepare`. A weight that was not prepared is on first use."""

    def __init__(self, workspace: Workspace, settings: TritonSettings) -> None:
        """Raises ValueError for float8 with deterministic products: the library's order of summation depends on the rows."""
        if settings.deterministic and settings.weights == "float8":
            raise ValueError("float8 weights have no product in which a row's bits do not depend on the batch")
        self._workspace = workspace
        self._settings = settings
        self._tiles: dict[tuple[int, int], tuple[Tile, ...]] = {}
        self._lock: Final = Lock()  # weights are prepared by several threads

    def __call__(self, x_TK: Tensor, weight: Linear) -> Tensor:
        """y_TN = x @ W.T + b, of x's type, summed in fp32."""
        product = weight.weight
        if not isinstance(product, DenseWeight | w4a16.PackedWeight | fp8.Float8Weight):
            self.prepare(weight)
            return self(x_TK, weight)
        wanted, dtype = x_TK.dtype, self._settings.dtype
        x_TK = x_TK if wanted == dtype else x_TK.to(dtype)
        y_TN = self._workspace.take_like(x_TK, (x_TK.shape[0], product.shape[0]), dtype)
        if y_TN.numel():
            product.multiply(x_TK, y_TN)
        return y_TN if wanted == dtype else y_TN.to(wanted)

    def prepare(self, weight: Linear) -> None:
        """Lay the weight out on the workspace's device. Raises TypeError for one that was prepared for something else."""
        loaded = weight.weight
        if isinstance(loaded, DenseWeight | w4a16.PackedWeight | fp8.Float8Weight):
            return
        if isinstance(loaded, Quantised):
            weight.weight = self._packed(loaded, weight.bias_N)
        elif not isinstance(loaded, Tensor):
            raise TypeError("the weight was prepared for another implementation")
        elif self._settings.weights == "float8" and not weight.looked_up:
            weight.weight = self._float8(loaded, weight.bias_N)
        else:
            weight.weight = self._dense(loaded, weight.bias_N)

    def _packed(self, loaded: Quantised, bias_N: Tensor | None) -> w4a16.PackedWeight:
        settings, device = self._settings, self._workspace.device
        with self._lock:
            return w4a16.packed(loaded, bias_N, device, settings.dtype, settings.deterministic)

    def _float8(self, loaded: Tensor, bias_N: Tensor | None) -> fp8.Float8Weight:
        return fp8.rounded(loaded, bias_N, self._workspace.device, self._settings.dtype)

    def _dense(self, loaded: Tensor, bias_N: Tensor | None) -> DenseWeight:
        settings, device = self._settings, self._workspace.device
        weight_NK = loaded.detach().to(device, settings.dtype).contiguous()
        bias = None if bias_N is None else bias_N.to(device, settings.dtype)
        tiles = self._tiles_for(weight_NK) if settings.deterministic else ()
        return DenseWeight(weight_NK=weight_NK, bias_N=bias, tiles=tiles)

    def _tiles_for(self, weight_NK: Tensor) -> tuple[Tile, ...]:
        """The tiles that give a row the same bits, seen once for each size of weight."""
        shape = (weight_NK.shape[0], weight_NK.shape[1])
        with self._lock:
            if shape not in self._tiles:
                self._tiles[shape] = gemm.tiles_for(weight_NK)
            return self._tiles[shape]
