"""Experts for many tokens: tiles of pairs that share an expert (`Tiles`) are multiplied by its weights on the tensor cores.

    up      a program: one tile, some inner rows    h[place] = act(gate · x, up · x)      in the order of experts
    down    a program: one tile, some output rows   out[p] = weight · (down · h[place] + bias)
    sum     a program: one token                    y[t] = Σ over its experts, best first: out

A row of a product depends on that row alone, and a tile's shape decides in which order it is summed: with one shape for all
sizes a token's bits do not depend on the batch. MXFP4 is widened in registers to the activations' type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import triton
import triton.language as tl
from torch import Tensor

from inference_stack.ops.api import Experts, Mxfp4
from inference_stack.ops.triton.cards import room
from inference_stack.ops.triton.experts_math import CLAMPED, KINDS, SILU, fp4_scale, fp4_value, gated
from inference_stack.ops.triton.experts_routing import Tiles, counting
from inference_stack.ops.triton.kernel import Shipped, kernel
from inference_stack.ops.workspace import Workspace

SUM_WIDTH: Final = 1024
GPT_OSS_WIDTH: Final = 2880


@dataclass(frozen=True, slots=True)
class Shape:
    """A tile's rows; the weight rows of a program (of `down`; `up` takes half as many gate rows and as many up rows); columns
    of dense and of MXFP4 weights read at once, the latter on a roomy card and on others, whose matrix instructions take more
    registers; and how a program runs."""

    rows: int
    outputs: int
    depth: int
    fp4_depth: int
    fp4_narrow: int
    warps: int
    stages: int
    fp4_stages: int

    @property
    def wgmma(self) -> bool:
        """Whether Hopper's matrix instructions are for such tiles."""
        return self.rows >= 64

    def columns(self, fp4: bool, roomy: bool) -> int:
        """Columns of weights read at once."""
        return (self.fp4_depth if roomy else self.fp4_narrow) if fp4 else self.depth


SMALL: Final = Shape(16, 64, 128, 128, 128, 4, 4, 4)
MIDDLE: Final = Shape(64, 128, 64, 64, 32, 4, 4, 3)
LARGE: Final = Shape(128, 128, 64, 64, 32, 8, 3, 3)
SHAPES: Final = (SMALL, MIDDLE, LARGE)
FIXED: Final = MIDDLE
"""What deterministic mode uses for all sizes."""


def shape_for(pairs: int, count: int) -> Shape:
    """The shape for this many pairs over `count` experts: about what an expert gets."""
    each = pairs / count
    return SMALL if each <= 24 else MIDDLE if each <= 96 else LARGE


@kernel
def dense_tile(
    weight: tl.tensor, row: tl.tensor, column: tl.tensor, rows: tl.tensor, depth: tl.tensor, EVEN: tl.constexpr
) -> tl.tensor:
    """weight[row, column] turned: [columns, rows]."""
    at = weight + row[None, :].to(tl.int64) * depth + column[:, None]
    mask = (row < rows)[None, :]
    if not EVEN:
        mask = mask & (column < depth)[:, None]
    return tl.load(at, mask=mask, other=0.0)


@kernel
def fp4_tile(
    blocks: tl.tensor,
    scales: tl.tensor,
    row: tl.tensor,
    low: tl.tensor,
    rows: tl.tensor,
    depth: tl.tensor,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> tl.tensor:
    """fp32 [DEPTH, ROWS], turned, of the columns from `low`."""
    inside = (row < rows)[:, None]
    byte = low // 2 + tl.arange(0, DEPTH // 2)
    group = low // 32 + tl.arange(0, DEPTH // 32)
    line = row[:, None].to(tl.int64)
    code = tl.load(
        blocks + line * (depth // 2) + byte[None, :], mask=inside & (byte < depth // 2)[None, :], other=0
    ).to(tl.int32)
    scale = tl.load(
        scales + line * (depth // 32) + group[None, :], mask=inside & (group < depth // 32)[None, :], other=0
    )
    values = tl.interleave(fp4_value(code & 15), fp4_value(code >> 4)).reshape([ROWS, DEPTH // 32, 32])
    return tl.trans((values * fp4_scale(scale)[:, :, None]).reshape([ROWS, DEPTH]))


@kernel
def up_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    inner: tl.tensor,
    order: tl.tensor,
    tile_expert: tl.tensor,
    tile_first: tl.tensor,
    tile_rows: tl.tensor,
    x_stride: tl.tensor,
    depth: tl.tensor,
    width: tl.tensor,
    top_k: tl.tensor,
    alpha: tl.tensor,
    limit: tl.tensor,
    KIND: tl.constexpr,
    BIASED: tl.constexpr,
    FP4: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """inner[place, width] of one tile; `weight` [X, 2 · width, depth], or blocks with half the columns. Without them `scales`,
    any pointer, is not read."""
    tile = tl.program_id(0)
    used = tl.load(tile_rows + tile)
    if used == 0:
        return
    expert = tl.load(tile_expert + tile).to(tl.int64)
    place = tl.load(tile_first + tile) + tl.arange(0, ROWS)
    live = tl.arange(0, ROWS) < used
    token = tl.load(order + place, mask=live, other=0) // top_k
    row = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    x_rows = x + token[:, None].to(tl.int64) * x_stride
    gate = tl.zeros([ROWS, OUTPUTS], dtype=tl.float32)
    up = tl.zeros([ROWS, OUTPUTS], dtype=tl.float32)
    pitch = depth // 2 if FP4 else depth
    gate_weight = weight + expert * (2 * width) * pitch
    up_weight = gate_weight + width.to(tl.int64) * pitch
    gate_scales = scales + expert * (2 * width) * (depth // 32)
    up_scales = gate_scales + width.to(tl.int64) * (depth // 32)
    for low in tl.range(0, depth, DEPTH):
        column = low + tl.arange(0, DEPTH)
        mask = live[:, None]
        if not EVEN:
            mask = mask & (column < depth)[None, :]
        a = tl.load(x_rows + column[None, :], mask=mask, other=0.0)
        if FP4:
            b = fp4_tile(gate_weight, gate_scales, row, low, width, depth, OUTPUTS, DEPTH).to(a.dtype)
            c = fp4_tile(up_weight, up_scales, row, low, width, depth, OUTPUTS, DEPTH).to(a.dtype)
        else:
            b = dense_tile(gate_weight, row, column, width, depth, EVEN)
            c = dense_tile(up_weight, row, column, width, depth, EVEN)
        gate = tl.dot(a, b, gate, input_precision="ieee")
        up = tl.dot(a, c, up, input_precision="ieee")
    if BIASED:
        at = bias + expert * (2 * width) + row
        gate += tl.load(at, mask=row < width, other=0.0)[None, :]
        up += tl.load(at + width, mask=row < width, other=0.0)[None, :]
    value = gated(gate, up, alpha, limit, KIND)
    out = inner + place[:, None].to(tl.int64) * width + row[None, :]
    tl.store(out, value.to(inner.dtype.element_ty), mask=live[:, None] & (row < width)[None, :])


@kernel
def down_kernel(
    inner: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    order: tl.tensor,
    tile_expert: tl.tensor,
    tile_first: tl.tensor,
    tile_rows: tl.tensor,
    depth: tl.tensor,
    width: tl.tensor,
    BIASED: tl.constexpr,
    FP4: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """out[p, width] of one tile's pairs p; `weight` [X, width, depth], or blocks with half the columns."""
    tile = tl.program_id(0)
    used = tl.load(tile_rows + tile)
    if used == 0:
        return
    expert = tl.load(tile_expert + tile).to(tl.int64)
    place = tl.load(tile_first + tile) + tl.arange(0, ROWS)
    live = tl.arange(0, ROWS) < used
    row = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    rows = inner + place[:, None].to(tl.int64) * depth
    total = tl.zeros([ROWS, OUTPUTS], dtype=tl.float32)
    own = weight + expert * width * (depth // 2 if FP4 else depth)
    own_scales = scales + expert * width * (depth // 32)
    for low in tl.range(0, depth, DEPTH):
        column = low + tl.arange(0, DEPTH)
        mask = live[:, None]
        if not EVEN:
            mask = mask & (column < depth)[None, :]
        a = tl.load(rows + column[None, :], mask=mask, other=0.0)
        if FP4:
            b = fp4_tile(own, own_scales, row, low, width, depth, OUTPUTS, DEPTH).to(a.dtype)
        else:
            b = dense_tile(own, row, column, width, depth, EVEN)
        total = tl.dot(a, b, total, input_precision="ieee")
    if BIASED:
        total += tl.load(bias + expert * width + row, mask=row < width, other=0.0)[None, :]
    pair = tl.load(order + place, mask=live, other=0).to(tl.int64)
    total *= tl.load(weights + pair, mask=live, other=0.0)[:, None]
    at = out + pair[:, None] * width + row[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=live[:, None] & (row < width)[None, :])


@counting
def sum_kernel(out: tl.tensor, y: tl.tensor, width: tl.tensor, top_k: tl.tensor, WIDTH: tl.constexpr) -> None:
    """y[t] = Σ over ranks of out[t, rank], in ascending order."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = column < width
    total = tl.zeros([WIDTH], dtype=tl.float32)
    for rank in tl.range(top_k):
        total += tl.load(out + (token * top_k + rank) * width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + token * width + column, total.to(y.dtype.element_ty), mask=inside)


def run(
    workspace: Workspace, x_TD: Tensor, experts: Experts, weights_TK: Tensor, tiles: Tiles, shape: Shape, y_TD: Tensor
) -> None:
    """Fills y_TD for pairs that were sorted into tiles of this shape."""
    tokens, top_k = weights_TK.shape
    inner_PI = _up(workspace, x_TD, experts, top_k, tiles, shape)
    down, width = experts.down, x_TD.shape[1]
    assert not isinstance(down, tuple)
    out_PD = workspace.take_like(x_TD, (tokens, top_k, width), x_TD.dtype)
    weight, scales, options = _side(down, shape, shape.outputs)
    bias = experts.down_bias_XD
    down_kernel[(tiles.most, triton.cdiv(width, shape.outputs))](
        inner_PI,
        weight,
        scales,
        bias,
        weights_TK,
        out_PD,
        tiles.order,
        tiles.expert,
        tiles.first,
        tiles.rows,
        down.shape[2],
        width,
        BIASED=bias is not None,
        **options,
    )
    sum_kernel[(tokens, triton.cdiv(width, SUM_WIDTH))](out_PD, y_TD, width, top_k, WIDTH=SUM_WIDTH)


def _up(workspace: Workspace, x_TD: Tensor, experts: Experts, top_k: int, tiles: Tiles, shape: Shape) -> Tensor:
    gate_up = experts.gate_up
    assert not isinstance(gate_up, tuple)
    inner = gate_up.shape[1] // 2
    inner_PI = workspace.take_like(x_TD, (x_TD.shape[0], top_k, inner), x_TD.dtype)
    weight, scales, options = _side(gate_up, shape, shape.outputs // 2)
    bias = experts.gate_up_bias_XN
    up_kernel[(tiles.most, triton.cdiv(inner, shape.outputs // 2))](
        x_TD,
        weight,
        scales,
        bias,
        inner_PI,
        tiles.order,
        tiles.expert,
        tiles.first,
        tiles.rows,
        x_TD.stride(0),
        x_TD.shape[1],
        inner,
        top_k,
        experts.alpha,
        experts.limit,
        KIND=KINDS[experts.activation],
        BIASED=bias is not None,
        **options,
    )
    return inner_PI


def _side(weights: Tensor | Mxfp4, shape: Shape, outputs: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """A stack's weights or blocks, its scales if it has any, and the launch options for it."""
    fp4 = isinstance(weights, Mxfp4)
    memory, scales = (weights.blocks, weights.scales) if isinstance(weights, Mxfp4) else (weights, weights)
    depth = shape.columns(fp4, room(memory.device).roomy)
    options = {
        "FP4": fp4,
        "EVEN": weights.shape[2] % depth == 0,
        "ROWS": shape.rows,
        "OUTPUTS": outputs,
        "DEPTH": depth,
        "num_warps": shape.warps,
        "num_stages": shape.fp4_stages if fp4 else shape.stages,
    }
    return memory, scales, options


def _shipped(up: bool, shape: Shape, fp4: bool, biased: bool, kind: int, roomy: bool) -> Shipped:
    columns = shape.columns(fp4, roomy)
    even = not biased or GPT_OSS_WIDTH % columns == 0
    tensors = {"x" if up else "inner": "*bf16", "weight": "*u8" if fp4 else "*bf16", "inner" if up else "out": "*bf16"}
    tensors |= dict.fromkeys(("order", "tile_expert", "tile_first", "tile_rows"), "*i32")
    tensors |= {"scales": "*u8" if fp4 else "*bf16"} | ({} if up else {"weights": "*fp32"})
    constants: dict[str, Any] = {"BIASED": biased, "FP4": fp4, "EVEN": even, "ROWS": shape.rows}
    constants |= {"OUTPUTS": shape.outputs // 2 if up else shape.outputs}
    constants |= {"DEPTH": columns}
    constants |= {"KIND": kind} if up else {}
    tensors |= {"bias": "*fp32"} if biased else {}
    constants |= {} if biased else {"bias": None}
    sizes = ("depth", "width", *(("x_stride",) if up else ()))
    integers = dict.fromkeys((*sizes, *(("top_k",) if up else ())), "i32")
    numbers = dict.fromkeys(("alpha", "limit"), "fp32") if up else {}
    form = f"{'mxfp4' if fp4 else 'bf16'}{'' if even else ' odd'}{' biased' if biased else ''}"
    return Shipped(
        name=f"experts {'up' if up else 'down'} {shape.rows} {form}",
        kernel=up_kernel if up else down_kernel,
        signature={**tensors, **integers, **numbers},
        constants=constants,
        aligned=(*tensors, *sizes),
        num_warps=shape.warps,
        num_stages=shape.fp4_stages if fp4 else shape.stages,
        wgmma=shape.wgmma,
        overlap=True,
        archs=(90,) if roomy else (80, 89),
    )


def _sum() -> Shipped:
    return Shipped(
        name="experts sum",
        kernel=sum_kernel,
        signature={"out": "*bf16", "y": "*bf16", "width": "i32", "top_k": "i32"},
        constants={"WIDTH": SUM_WIDTH},
        aligned=("out", "y", "width"),
    )


SHIPPED: Final = (
    _sum(),
    *(
        _shipped(up, shape, fp4, biased, CLAMPED if biased else SILU, roomy)
        for shape in SHAPES
        for fp4, biased in ((False, False), (False, True), (True, True))
        for up in (True, False)
        for roomy in (True, False)
    ),
)
