"""Root-mean-square normalisation (arXiv:1910.07467), alone or after adding the residual, in one launch and one reading.

    a program: one row, held whole in registers up to 16384 numbers

Sums are fp32 in an order that the row's width alone decides. Floor: x (and residual) read, y (and the sum) written once.
"""

from __future__ import annotations

from typing import Any, Final

import triton
import triton.language as tl
from torch import Tensor

from inference_stack.ops.triton.kernel import Shipped, kernel
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace

WIDEST: Final = 16384


@kernel
def rmsnorm_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    total: tl.tensor,
    x_stride: tl.tensor,
    residual_stride: tl.tensor,
    width: tl.tensor,
    eps: tl.tensor,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The normalised row; with ADD of x + residual, which `total` receives."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    v = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        v += tl.load(residual + row * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + row * width + column, v.to(total.dtype.element_ty), mask=inside)
    mean = tl.sum(v * v, 0) / width
    y = v * (1.0 / tl.sqrt(mean + eps)) * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, y.to(out.dtype.element_ty), mask=inside)


def warps_for(width: int) -> int:
    """Warps of a row: 16 numbers a thread, as far as there are that many."""
    return max(1, min(16, triton.next_power_of_2(width) // 512))


def _launch(x: Tensor, residual: Tensor, weight: Tensor, out: Tensor, total: Tensor, eps: float, add: bool) -> None:
    rows, width = x.shape
    if width > WIDEST:
        raise ValueError(f"rows of {width} numbers are wider than the {WIDEST} that the norms take")
    if out.numel():
        x, residual = (side if side.stride(1) == 1 else side.contiguous() for side in (x, residual))
        rmsnorm_kernel[(rows,)](
            x, residual, weight, out, total, x.stride(0), residual.stride(0), width, float(eps), add,
            triton.next_power_of_2(width), num_warps=warps_for(width),
        )  # fmt: skip


class RmsNorm:
    """`Ops.rmsnorm`."""

    def __init__(self, workspace: Workspace, settings: TritonSettings) -> None:
        self._workspace = workspace

    def __call__(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x²) + eps) · weight, in the dtype of x. Raises ValueError for rows wider than 16384."""
        out_TD = self._workspace.take_like(x_TD, x_TD.shape, x_TD.dtype)
        _launch(x_TD, x_TD, weight_D, out_TD, out_TD, eps, False)
        return out_TD


class AddRmsNorm:
    """`Ops.add_rmsnorm`."""

    def __init__(self, workspace: Workspace, settings: TritonSettings) -> None:
        self._workspace = workspace

    def __call__(self, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """s = x + residual in fp32; (its norm in the dtype of x, s in the residual's). Raises ValueError as `rmsnorm`."""
        total_TD = self._workspace.take_like(x_TD, x_TD.shape, residual_TD.dtype)
        out_TD = self._workspace.take_like(x_TD, x_TD.shape, x_TD.dtype)
        _launch(x_TD, residual_TD, weight_D, out_TD, total_TD, eps, True)
        return out_TD, total_TD


def _shipped(width: int, add: bool) -> Shipped:
    pointers = {"x": "*bf16", "residual": "*bf16", "weight": "*fp32", "out": "*bf16", "total": "*bf16"}
    sizes: dict[str, Any] = {"x_stride": "i32", "residual_stride": "i32", "width": "i32", "eps": "fp32"}
    return Shipped(
        name=f"{'add_' if add else ''}rmsnorm {width}",
        kernel=rmsnorm_kernel,
        signature=pointers | sizes,
        constants={"ADD": add, "BLOCK": triton.next_power_of_2(width)},
        aligned=(*pointers, "x_stride", "residual_stride", "width"),
        num_warps=warps_for(width),
    )


SHIPPED: Final = tuple(_shipped(width, add) for width in (576, 2048, 4096) for add in (False, True))
"""SmolLM2-135M; Qwen3-30B-A3B; Llama-3.1-8B, Qwen3-8B and Qwen2.5-7B (3584)."""
