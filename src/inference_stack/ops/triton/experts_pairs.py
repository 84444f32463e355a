"""Experts for a few tokens: every pair of a token and an expert reads its expert's rows, at the speed of memory.

    up     a program: one pair, some of the inner rows     h[p] = act(gate · x, up · x)
    down   a program: one token, some of the output rows   y[t] = Σ over its experts, best first: weight · (down · h[p] + bias)

Sums are fp32. Programs of pairs that share an expert run side by side, so that its rows are read from memory once.
"""

from __future__ import annotations

from typing import Any, Final

import triton
import triton.language as tl
from torch import Tensor

from inference_stack.ops.api import Experts, Mxfp4
from inference_stack.ops.triton.experts_math import CLAMPED, KINDS, SILU, fp4_scale, fp4_value, gated
from inference_stack.ops.triton.kernel import Shipped, kernel
from inference_stack.ops.workspace import Workspace

UP_ROWS: Final = 16
DOWN_ROWS: Final = 8
DEPTH: Final = 256
"""Columns of a dense weight that a program reads at once."""
GROUPS: Final = 16
"""Groups of 32 columns of an MXFP4 weight that a program reads at once."""
STAGES: Final = tl.constexpr(3)
"""Pieces of a weight: one is computed while two are on their way. Without matrix instructions the compiler has to be told."""


@kernel
def dense_up_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    experts: tl.tensor,
    inner: tl.tensor,
    x_stride: tl.tensor,
    depth: tl.tensor,
    width: tl.tensor,
    top_k: tl.tensor,
    alpha: tl.tensor,
    limit: tl.tensor,
    KIND: tl.constexpr,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """inner[p, width] of pair p; `weight` [X, 2 · width, depth]."""
    pair = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = row < width
    expert = tl.load(experts + pair).to(tl.int64)
    token = pair // top_k
    gate_rows = weight + (expert * (2 * width) + row)[:, None] * depth
    up_rows = gate_rows + width.to(tl.int64) * depth
    gate = tl.zeros([ROWS, DEPTH], dtype=tl.float32)
    up = tl.zeros([ROWS, DEPTH], dtype=tl.float32)
    for low in tl.range(0, depth, DEPTH, num_stages=STAGES):
        column = low + tl.arange(0, DEPTH)
        x_D = tl.load(x + token * x_stride + column, mask=column < depth, other=0.0).to(tl.float32)
        mask = inside[:, None] & (column < depth)[None, :]
        gate += tl.load(gate_rows + column[None, :], mask=mask, other=0.0).to(tl.float32) * x_D[None, :]
        up += tl.load(up_rows + column[None, :], mask=mask, other=0.0).to(tl.float32) * x_D[None, :]
    gate_N = tl.sum(gate, axis=1)
    up_N = tl.sum(up, axis=1)
    if BIASED:
        at = bias + expert * (2 * width) + row
        gate_N += tl.load(at, mask=inside, other=0.0)
        up_N += tl.load(at + width, mask=inside, other=0.0)
    value = gated(gate_N, up_N, alpha, limit, KIND)
    tl.store(inner + pair * width + row, value.to(inner.dtype.element_ty), mask=inside)


@kernel
def dense_down_kernel(
    inner: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    experts: tl.tensor,
    weights: tl.tensor,
    y: tl.tensor,
    depth: tl.tensor,
    width: tl.tensor,
    top_k: tl.tensor,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """y[t, width] of token t; `weight` [X, width, depth]."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = row < width
    total = tl.zeros([ROWS, DEPTH], dtype=tl.float32)
    extra = tl.zeros([ROWS], dtype=tl.float32)
    for rank in tl.range(top_k):
        pair = token * top_k + rank
        expert = tl.load(experts + pair).to(tl.int64)
        share = tl.load(weights + pair)
        rows = weight + (expert * width + row)[:, None] * depth
        for low in tl.range(0, depth, DEPTH, num_stages=STAGES):
            column = low + tl.arange(0, DEPTH)
            h_D = tl.load(inner + pair * depth + column, mask=column < depth, other=0.0).to(tl.float32) * share
            mask = inside[:, None] & (column < depth)[None, :]
            total += tl.load(rows + column[None, :], mask=mask, other=0.0).to(tl.float32) * h_D[None, :]
        if BIASED:
            extra += share * tl.load(bias + expert * width + row, mask=inside, other=0.0)
    value = tl.sum(total, axis=1) + extra
    tl.store(y + token * width + row, value.to(y.dtype.element_ty), mask=inside)


@kernel
def fp4_products(blocks: tl.tensor, scales: tl.tensor, even: tl.tensor, odd: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Sums of 32 columns each [ROWS, GROUPS] of blocks at [ROWS, GROUPS, 16], for inputs [GROUPS, 16] of even and odd columns."""
    byte = tl.load(blocks, mask=mask[:, :, None], other=0).to(tl.int32)
    part = fp4_value(byte & 15) * even[None, :, :] + fp4_value(byte >> 4) * odd[None, :, :]
    return tl.sum(part, axis=2) * fp4_scale(tl.load(scales, mask=mask, other=0))


@kernel
def fp4_up_kernel(
    x: tl.tensor,
    blocks: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    experts: tl.tensor,
    inner: tl.tensor,
    x_stride: tl.tensor,
    depth: tl.tensor,
    width: tl.tensor,
    top_k: tl.tensor,
    alpha: tl.tensor,
    limit: tl.tensor,
    KIND: tl.constexpr,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
) -> None:
    """As `dense_up_kernel`, of MXFP4 blocks [X, 2 · width, depth / 2] and scales [X, 2 · width, depth / 32]."""
    pair = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = row < width
    expert = tl.load(experts + pair).to(tl.int64)
    token = pair // top_k
    byte = tl.arange(0, 16)
    groups = depth // 32
    gate_row = (expert * (2 * width) + row)[:, None] * groups
    up_row = gate_row + width.to(tl.int64) * groups
    gate = tl.zeros([ROWS, GROUPS], dtype=tl.float32)
    up = tl.zeros([ROWS, GROUPS], dtype=tl.float32)
    for low in tl.range(0, groups, GROUPS, num_stages=STAGES):
        group = low + tl.arange(0, GROUPS)
        known = group < groups
        mask = inside[:, None] & known[None, :]
        at = x + token * x_stride + group[:, None] * 32 + byte[None, :] * 2
        even = tl.load(at, mask=known[:, None], other=0.0).to(tl.float32)
        odd = tl.load(at + 1, mask=known[:, None], other=0.0).to(tl.float32)
        one = gate_row + group[None, :]
        gate += fp4_products(blocks + one[:, :, None] * 16 + byte[None, None, :], scales + one, even, odd, mask)
        one = up_row + group[None, :]
        up += fp4_products(blocks + one[:, :, None] * 16 + byte[None, None, :], scales + one, even, odd, mask)
    gate_N = tl.sum(gate, axis=1)
    up_N = tl.sum(up, axis=1)
    if BIASED:
        place = bias + expert * (2 * width) + row
        gate_N += tl.load(place, mask=inside, other=0.0)
        up_N += tl.load(place + width, mask=inside, other=0.0)
    value = gated(gate_N, up_N, alpha, limit, KIND)
    tl.store(inner + pair * width + row, value.to(inner.dtype.element_ty), mask=inside)


@kernel
def fp4_down_kernel(
    inner: tl.tensor,
    blocks: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    experts: tl.tensor,
    weights: tl.tensor,
    y: tl.tensor,
    depth: tl.tensor,
    width: tl.tensor,
    top_k: tl.tensor,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
) -> None:
    """As `dense_down_kernel`, of MXFP4 blocks [X, width, depth / 2] and scales [X, width, depth / 32]."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = row < width
    byte = tl.arange(0, 16)
    groups = depth // 32
    total = tl.zeros([ROWS, GROUPS], dtype=tl.float32)
    extra = tl.zeros([ROWS], dtype=tl.float32)
    for rank in tl.range(top_k):
        pair = token * top_k + rank
        expert = tl.load(experts + pair).to(tl.int64)
        share = tl.load(weights + pair)
        row_groups = (expert * width + row)[:, None] * groups
        for low in tl.range(0, groups, GROUPS, num_stages=STAGES):
            group = low + tl.arange(0, GROUPS)
            known = group < groups
            mask = inside[:, None] & known[None, :]
            at = inner + pair * depth + group[:, None] * 32 + byte[None, :] * 2
            even = tl.load(at, mask=known[:, None], other=0.0).to(tl.float32) * share
            odd = tl.load(at + 1, mask=known[:, None], other=0.0).to(tl.float32) * share
            one = row_groups + group[None, :]
            total += fp4_products(blocks + one[:, :, None] * 16 + byte[None, None, :], scales + one, even, odd, mask)
        if BIASED:
            extra += share * tl.load(bias + expert * width + row, mask=inside, other=0.0)
    value = tl.sum(total, axis=1) + extra
    tl.store(y + token * width + row, value.to(y.dtype.element_ty), mask=inside)


def run(
    workspace: Workspace, x_TD: Tensor, experts: Experts, experts_TK: Tensor, weights_TK: Tensor, y_TD: Tensor
) -> None:
    """Fills y_TD for the pairs of `experts_TK`."""
    gate_up, down = experts.gate_up, experts.down
    assert not isinstance(gate_up, tuple) and not isinstance(down, tuple)
    tokens, top_k = experts_TK.shape
    width, inner = x_TD.shape[1], down.shape[2]
    inner_PI = workspace.take_like(x_TD, (tokens, top_k, inner), x_TD.dtype)
    up_bias, down_bias = experts.gate_up_bias_XN, experts.down_bias_XD
    kind = KINDS[experts.activation]
    up, reading = _side(gate_up)
    (fp4_up_kernel if isinstance(gate_up, Mxfp4) else dense_up_kernel)[(tokens * top_k, triton.cdiv(inner, UP_ROWS))](
        x_TD,
        *up,
        up_bias,
        experts_TK,
        inner_PI,
        x_TD.stride(0),
        width,
        inner,
        top_k,
        experts.alpha,
        experts.limit,
        KIND=kind,
        BIASED=up_bias is not None,
        ROWS=UP_ROWS,
        **reading,
    )
    back, reading = _side(down)
    (fp4_down_kernel if isinstance(down, Mxfp4) else dense_down_kernel)[(tokens, triton.cdiv(width, DOWN_ROWS))](
        inner_PI,
        *back,
        down_bias,
        experts_TK,
        weights_TK,
        y_TD,
        inner,
        width,
        top_k,
        BIASED=down_bias is not None,
        ROWS=DOWN_ROWS,
        **reading,
    )


def _side(weights: Tensor | Mxfp4) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """A stack's tensors, and how much of it is read at once."""
    if isinstance(weights, Mxfp4):
        return (weights.blocks, weights.scales), {"GROUPS": GROUPS}
    return (weights,), {"DEPTH": DEPTH}


def _shipped(name: str, kernel_: Any, fp4: bool, biased: bool, up: bool, kind: int) -> Shipped:
    stacks = {"blocks": "*u8", "scales": "*u8"} if fp4 else {"weight": "*bf16"}
    tensors = {"x" if up else "inner": "*bf16", **stacks, "experts": "*i32"}
    tensors |= {"inner": "*bf16"} if up else {"weights": "*fp32", "y": "*bf16"}
    integers = dict.fromkeys(("depth", "width", "top_k", *(("x_stride",) if up else ())), "i32")
    numbers = dict.fromkeys(("alpha", "limit"), "fp32") if up else {}
    bias: dict[str, Any] = {"bias": "*fp32"} if biased else {}
    constants: dict[str, Any] = {"GROUPS": GROUPS} if fp4 else {"DEPTH": DEPTH}
    constants |= {"KIND": kind} if up else {}
    constants |= {} if biased else {"bias": None}
    return Shipped(
        name=f"experts pairs {name}",
        kernel=kernel_,
        signature={**tensors, **bias, **integers, **numbers},
        constants=constants | {"BIASED": biased, "ROWS": UP_ROWS if up else DOWN_ROWS},
        aligned=(*tensors, *bias, "depth", "width", *(("x_stride",) if up else ())),
        overlap=True,
    )


SHIPPED: Final = (
    _shipped("up bf16 silu", dense_up_kernel, fp4=False, biased=False, up=True, kind=SILU),
    _shipped("up bf16 clamped", dense_up_kernel, fp4=False, biased=True, up=True, kind=CLAMPED),
    _shipped("up mxfp4 clamped", fp4_up_kernel, fp4=True, biased=True, up=True, kind=CLAMPED),
    _shipped("down bf16", dense_down_kernel, fp4=False, biased=False, up=False, kind=SILU),
    _shipped("down bf16 biased", dense_down_kernel, fp4=False, biased=True, up=False, kind=SILU),
    _shipped("down mxfp4 biased", fp4_down_kernel, fp4=True, biased=True, up=False, kind=SILU),
)
