"""Gated activations in one launch: y = act(gate) · up of the fused projection [T, 2·I], which holds gate, then up.

    a program: one row, a tile of columns

Arithmetic is fp32, rounded once. Floor: T · 2I numbers read, T · I written. It knows nothing of the projections around it.
"""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl
from torch import Tensor

from inference_stack.ops.api import Activation
from inference_stack.ops.triton.experts_math import GELU, KINDS, SILU, gated
from inference_stack.ops.triton.kernel import Shipped, kernel
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace

BLOCK: Final = 1024
WARPS: Final = 4


@kernel
def act_mul_kernel(
    x: tl.tensor, out: tl.tensor, x_stride: tl.tensor, width: tl.tensor, KIND: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """`width` is I."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    source = x + row * x_stride + column
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + width, mask=inside, other=0.0).to(tl.float32)
    y = gated(gate, up, 0.0, 0.0, KIND)
    tl.store(out + row * width + column, y.to(out.dtype.element_ty), mask=inside)


class ActMul:
    """`Ops.act_mul`."""

    def __init__(self, workspace: Workspace, settings: TritonSettings) -> None:
        self._workspace = workspace

    def __call__(self, gate_up_TX: Tensor, kind: Activation) -> Tensor:
        """act(gate) · up, [T, I] in the dtype of the projection."""
        rows, width = gate_up_TX.shape[0], gate_up_TX.shape[1] // 2
        out_TI = self._workspace.take_like(gate_up_TX, (rows, width), gate_up_TX.dtype)
        if out_TI.numel():
            x = gate_up_TX if gate_up_TX.stride(1) == 1 else gate_up_TX.contiguous()
            grid = (rows, triton.cdiv(width, BLOCK))
            act_mul_kernel[grid](x, out_TI, x.stride(0), width, KINDS[kind], BLOCK, num_warps=WARPS)
        return out_TI


SHIPPED: Final = tuple(
    Shipped(
        name=f"act_mul {name}",
        kernel=act_mul_kernel,
        signature={"x": "*bf16", "out": "*bf16", "x_stride": "i32", "width": "i32"},
        constants={"KIND": kind, "BLOCK": BLOCK},
        aligned=("x", "out", "x_stride", "width"),
        num_warps=WARPS,
    )
    for name, kind in (("silu", SILU), ("gelu_tanh", GELU))
)
