"""Rows by index in one launch each: `embed` looks token rows up and scales them, `select` picks the rows whose logits are wanted.

    a program: one row, a tile of columns

Floor: each row read and written once. Quantised tables give their rows themselves. It knows nothing of what rows mean.
"""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl
from torch import Tensor

from inference_stack.ops.api import Linear, Quantised
from inference_stack.ops.reference.quantised import rows_of
from inference_stack.ops.triton.kernel import Shipped, kernel
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace

BLOCK: Final = 1024
WARPS: Final = 4


@kernel
def gather_kernel(
    source: tl.tensor,
    index: tl.tensor,
    out: tl.tensor,
    source_stride: tl.tensor,
    width: tl.tensor,
    scale: tl.tensor,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """out[r] = source[index[r]] · scale, out being contiguous."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(source + tl.load(index + row) * source_stride + column, mask=column < width)
    if SCALED:
        x = x.to(tl.float32) * scale
    tl.store(out + row * width + column, x.to(out.dtype.element_ty), mask=column < width)


def _gather(source: Tensor, index: Tensor, out: Tensor, scale: float) -> Tensor:
    width = out.shape[1]
    if out.numel():
        source = source if source.stride(1) == 1 else source.contiguous()
        grid = (out.shape[0], triton.cdiv(width, BLOCK))
        scaled = scale != 1.0
        gather_kernel[grid](
            source, index, out, source.stride(0), width, float(scale), scaled, BLOCK, num_warps=WARPS
        )  # fmt: skip
    return out


class Embed:
    """`Ops.embed`: rows of the table in the activations' dtype."""

    def __init__(self, workspace: Workspace, settings: TritonSettings) -> None:
        self._workspace = workspace
        self._dtype = settings.dtype

    def __call__(self, tokens_T: Tensor, table: Linear, scale: float = 1.0) -> Tensor:
        """x_TD = table[tokens] · scale, rounded once."""
        weight = table.weight
        out_TD = self._workspace.take((tokens_T.shape[0], weight.shape[1]), self._dtype)
        if isinstance(weight, Tensor):
            return _gather(weight, tokens_T.contiguous(), out_TD, scale)
        rows_TD = rows_of(weight, tokens_T) if isinstance(weight, Quantised) else weight.rows(tokens_T)
        return out_TD.copy_(rows_TD if scale == 1.0 else rows_TD.float() * scale)


class Select:
    """`Ops.select`."""

    def __init__(self, workspace: Workspace, settings: TritonSettings) -> None:
        self._workspace = workspace

    def __call__(self, x_TD: Tensor, rows_S: Tensor) -> Tensor:
        """x[rows] in the dtype of x; the leading dimension counts samples."""
        out_SD = self._workspace.take((rows_S.shape[0], x_TD.shape[1]), x_TD.dtype, rows="samples")
        return _gather(x_TD, rows_S.contiguous(), out_SD, 1.0)


SHIPPED: Final = tuple(
    Shipped(
        name=f"gather{' scaled' if scaled else ''}",
        kernel=gather_kernel,
        signature={
            "source": "*bf16", "index": "*i64", "out": "*bf16", "source_stride": "i32", "width": "i32", "scale": "fp32",
        },
        constants={"SCALED": scaled, "BLOCK": BLOCK},
        aligned=("source", "out", "source_stride", "width"),
        num_warps=WARPS,
    )
    for scaled in (False, True)
)  # fmt: skip
