"""Products by group-quantised weights of 4 or 8 bits with 16-bit activations: y = x @ (code · scale + zero).T + b.

Codes are widened in registers, in fp32, rounded to the activations' type and fed to the matrix instructions: a weight is read
once, in its own size, for up to `FUSED` rows. For more, `widen` writes it out for a library's product. Activations are never
quantised here, unlike on CPUs. Where codes lie, and why:

    words int32 [block][output][16]     a block is 16 words' columns: 128 of 4 bits, 64 of 8
    word j of a block holds, from its low bits up, columns j, 16 + j, 32 + j, … of the block

so that a tile of outputs is one contiguous piece of memory, read 16 bytes a thread; one shift and mask of all words gives 16
neighbouring columns (a plane), which is what a matrix instruction eats and lies within one group; and no number ever moves
between threads to be unpacked. The outputs take the instruction's long side, so that one row of x fills no tile of 64 alone.
One row reads N·K·bits/8 bytes of codes and N·K/group · 4 of scales and zeros, which is the floor of its time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
import triton.language as tl
from torch import Tensor

from inference_stack.ops.api import Quantised
from inference_stack.ops.triton.gemm import PROOF_ROWS, agreeing
from inference_stack.ops.triton.kernel import Shipped, kernel, kernel_for_any

WORDS: Final = 16
PADDING: Final = 128
"""Outputs are filled up to a multiple of this, and columns to whole blocks."""
FUSED: Final = 128
"""Rows up to which the fused product is faster than widening the weight first."""
MOST_SPANS: Final = 8
FEWEST_BLOCKS: Final = 4
"""K is split into at most that many spans, each of at least that many blocks."""
WIDEN_ROWS: Final = 64
WIDENED_BYTES: Final = 256 << 20
"""Most memory that a widened weight takes; larger ones are widened and multiplied in parts."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A program's rows of x and outputs, how it runs, and how many of them a large GPU (132 processors) runs at once.

    That number is not asked of the device, since it decides how K is split.
    """

    rows: int
    outputs: int
    warps: int
    stages: int
    programs: int


FEW: Final = Tile(16, 64, 4, 4, 528)
SOME: Final = Tile(64, 128, 8, 3, 264)
MANY: Final = Tile(128, 128, 8, 3, 132)
TILES: Final = (FEW, SOME, MANY)
BASE: Final = SOME
"""What defines the result where rows must not depend on their number."""


@kernel
def scale_of(scales: tl.tensor, at: tl.tensor, HALF: tl.constexpr) -> tl.tensor:
    """Scales as fp32: the low half of each word, or words of their own."""
    if HALF:
        return (tl.load(scales + at) & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return tl.load(scales + at * 2).to(tl.float32, bitcast=True)


@kernel
def zero_of(scales: tl.tensor, at: tl.tensor, HALF: tl.constexpr) -> tl.tensor:
    """Zeros as fp32: the high half of each word, or the words beside the scales."""
    if HALF:
        return (tl.load(scales + at) >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return tl.load(scales + at * 2 + 1).to(tl.float32, bitcast=True)


@kernel
def widened(words: tl.tensor, scale: tl.tensor, zero: tl.tensor, BITS: tl.constexpr, PLANE: tl.constexpr) -> tl.tensor:
    """One plane's weights, fp32 [outputs, 16]. A code becomes the top bits of a mantissa, 1 + code / 2 ** BITS, since converting
    an integer takes longer than a shift and a mask; scale and zero undo that, exactly where the file's numbers are fp16."""
    SHIFT: tl.constexpr = BITS * PLANE - (23 - BITS)
    MASK: tl.constexpr = ((1 << BITS) - 1) << (23 - BITS)
    moved = words >> SHIFT if SHIFT > 0 else words << -SHIFT
    value = ((moved & MASK) | 0x3F800000).to(tl.float32, bitcast=True)
    # 8-bit codes are stored with 128 added.
    step, start = scale * (1 << BITS), zero - scale * (16 if BITS == 4 else 384)
    return value * step[:, None] + start[:, None]


@kernel_for_any("rows", "per_split", "splits")
def product_kernel(
    x: tl.tensor,
    words: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    partial: tl.tensor,
    arrived: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    padded: tl.tensor,
    depth: tl.tensor,
    group: tl.tensor,
    per_split: tl.tensor,
    splits: tl.tensor,
    x_stride: tl.tensor,
    BITS: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_N: tl.constexpr,
    SHARED: tl.constexpr,
    HALF: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN: tl.constexpr,
    APART: tl.constexpr,
) -> None:
    """One tile of y [rows, outputs], contiguous. K is summed in `splits` spans of `per_split` blocks, and the spans in ascending
    order. With `APART` each is a program of its own, of which the last to arrive adds all up; `arrived` is 0 before and after.
    `SHARED` neighbouring planes have one scale. `EVEN`: depth is a multiple of a block.
    """
    PLANES: tl.constexpr = 32 // BITS
    row_n = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    row_t = tl.program_id(1) * TILE_T + tl.arange(0, TILE_T)
    is_t = (row_t < rows)[None, :]
    j = tl.arange(0, 16)
    x_at = x + row_t.to(tl.int64)[None, :] * x_stride + j[:, None]
    words_at = words + row_n.to(tl.int64)[:, None] * 16 + j[None, :]
    words_step = padded.to(tl.int64) * 16
    blocks = tl.cdiv(depth, 16 * PLANES)
    first, last = 0, splits
    if APART:
        first, last = tl.program_id(2), tl.program_id(2) + 1
    total = tl.zeros([TILE_N, TILE_T], tl.float32)
    for split in range(first, last):
        sums = tl.zeros([TILE_N, TILE_T], tl.float32)
        for block in range(split * per_split, tl.minimum((split + 1) * per_split, blocks)):
            packed = tl.load(words_at + block * words_step)
            scale = tl.zeros([TILE_N], tl.float32)
            zero = tl.zeros([TILE_N], tl.float32)
            for plane in tl.static_range(PLANES):
                column = (block * PLANES + plane) * 16
                if plane % SHARED == 0:
                    # Planes beyond the last column meet zeros of x; the scale they take is one that exists.
                    at = (tl.minimum(column, depth - 16) // group).to(tl.int64) * padded + row_n
                    scale = scale_of(scales, at, HALF)
                    zero = zero_of(scales, at, HALF)
                inside = is_t if EVEN else is_t & (column < depth)
                x_KT = tl.load(x_at + column, mask=inside, other=0.0)
                weight_NK = widened(packed, scale, zero, BITS, plane).to(x_KT.dtype)
                sums = tl.dot(weight_NK, x_KT, sums, input_precision="ieee")
        total += sums
    is_n = row_n < outputs
    inside = is_n[:, None] & is_t
    if APART:
        at = row_t.to(tl.int64)[None, :] * padded + row_n[:, None]
        size = rows.to(tl.int64) * padded
        tl.store(partial + tl.program_id(2) * size + at, total, mask=inside)
        tl.debug_barrier()
        ticket = tl.atomic_add(arrived + tl.program_id(0), 1, sem="acq_rel")
        if ticket == splits - 1:
            total = tl.zeros([TILE_N, TILE_T], tl.float32)
            for split in range(splits):
                total += tl.load(partial + split * size + at, mask=inside, other=0.0, cache_modifier=".cg")
            _finish(total, bias, y, row_t, row_n, outputs, inside, HAS_BIAS)
            tl.store(arrived + tl.program_id(0), 0)
    else:
        _finish(total, bias, y, row_t, row_n, outputs, inside, HAS_BIAS)


@kernel
def _finish(
    total: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    row_t: tl.tensor,
    row_n: tl.tensor,
    outputs: tl.tensor,
    inside: tl.tensor,
    HAS_BIAS: tl.constexpr,
) -> None:
    """Bias, rounding and y."""
    if HAS_BIAS:
        total += tl.load(bias + row_n, mask=row_n < outputs, other=0.0)[:, None]
    tl.store(y + row_t.to(tl.int64)[None, :] * outputs + row_n[:, None], total.to(y.dtype.element_ty), mask=inside)


@kernel_for_any("first_row", "rows")
def widen_kernel(
    words: tl.tensor,
    scales: tl.tensor,
    dense: tl.tensor,
    first_row: tl.tensor,
    rows: tl.tensor,
    padded: tl.tensor,
    depth: tl.tensor,
    group: tl.tensor,
    BITS: tl.constexpr,
    TILE_N: tl.constexpr,
    HALF: tl.constexpr,
) -> None:
    """One block of some rows of the weight, written to `dense` [rows, depth], of which the first is `first_row`."""
    PLANES: tl.constexpr = 32 // BITS
    row = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    row_n = first_row + row
    is_n = row < rows
    j = tl.arange(0, 16)
    block = tl.program_id(1)
    words_at = (block.to(tl.int64) * padded + row_n)[:, None] * 16 + j[None, :]
    packed = tl.load(words + words_at, mask=is_n[:, None], other=0)
    for plane in tl.static_range(PLANES):
        column = (block * PLANES + plane) * 16
        at = (tl.minimum(column, depth - 16) // group).to(tl.int64) * padded + tl.where(is_n, row_n, 0)
        weight_NK = widened(packed, scale_of(scales, at, HALF), zero_of(scales, at, HALF), BITS, plane)
        out = dense + row.to(tl.int64)[:, None] * depth + column + j[None, :]
        tl.store(out, weight_NK.to(dense.dtype.element_ty), mask=is_n[:, None] & (column < depth))


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeight:
    """A weight [N, K] of 4 or 8 bits as the kernels want it (`Prepared`), for activations of `dtype`.

    `words` int32 [blocks, padded N, 16]; `scales` int32 [K/group, padded N, 1 or 2], the bits of a scale and of a zero, both fp16
    or both fp32; `arrived` int32 [padded N / 64], zeros. `tiles` are those that may be used; with `fixed` they all give a row
    the same bits, and no library is asked.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    bits: int
    group: int
    words: Tensor
    scales: Tensor
    arrived: Tensor
    order_K: Tensor | None
    bias_N: Tensor | None
    fixed: bool
    tiles: tuple[Tile, ...] = TILES

    @property
    def nbytes(self) -> int:
        """Bytes of all its parts but the bias."""
        return self.words.nbytes + self.scales.nbytes + (0 if self.order_K is None else self.order_K.nbytes)

    @property
    def block(self) -> int:
        """Columns of a block."""
        return WORDS * 32 // self.bits

    @property
    def half(self) -> bool:
        """Whether scales and zeros are fp16."""
        return self.scales.shape[2] == 1

    def rows(self, index_T: Tensor) -> Tensor:
        """Some rows of the weight, fp32 [T, K]."""
        words_BTW = self.words.index_select(1, index_T)
        shifts_P = torch.arange(0, 32, self.bits, dtype=torch.int32, device=words_BTW.device)
        codes_BTPW = (words_BTW[:, :, None] >> shifts_P[:, None]) & ((1 << self.bits) - 1)
        codes_TK = codes_BTPW.permute(1, 0, 2, 3).flatten(1)[:, : self.shape[1]].to(torch.float32)
        steps = self.scales.index_select(1, index_T).view(torch.float16 if self.half else torch.float32)
        scale_TG1, zero_TG1 = (part.t()[..., None].to(torch.float32) for part in steps.unbind(2))
        codes_TGX = codes_TK.unflatten(1, (-1, self.group)) - (0 if self.bits == 4 else 128)
        dense_TK = (codes_TGX * scale_TG1 + zero_TG1).flatten(1)
        if self.order_K is None:
            return dense_TK
        return torch.empty_like(dense_TK).index_copy_(1, self.order_K.to(torch.int64), dense_TK)

    def multiply(self, x_TK: Tensor, y_TN: Tensor) -> None:
        """y = x @ W.T + b; x and y of `dtype`."""
        rows = x_TK.shape[0]
        if self.order_K is not None:
            x_TK = x_TK.index_select(1, self.order_K)
        elif x_TK.stride(1) != 1:
            x_TK = x_TK.contiguous()
        if rows > FUSED and not self.fixed:
            self._multiply_widened(x_TK, y_TN)
        else:
            self._multiply_fused(x_TK, y_TN, next((tile for tile in self.tiles if rows <= tile.rows), self.tiles[-1]))

    def splits(self, tile: Tile) -> int:
        """Into how many spans K is cut, to keep a whole GPU busy."""
        tile = FEW if self.fixed else tile
        most = min(MOST_SPANS, self.words.shape[0] // FEWEST_BLOCKS)
        return max(1, min(most, tile.programs * tile.outputs // self.words.shape[1]))

    def _multiply_fused(self, x_TK: Tensor, y_TN: Tensor, tile: Tile) -> None:
        rows, (outputs, depth), (blocks, padded, _) = x_TK.shape[0], self.shape, self.words.shape
        splits, parts = self.splits(tile), -(-rows // tile.rows)
        apart = splits > 1 and parts == 1
        partial = self.arrived
        if apart:
            partial = torch.empty((splits, rows, padded), dtype=torch.float32, device=x_TK.device)
        product_kernel[(padded // tile.outputs, parts, splits if apart else 1)](
            x_TK, self.words, self.scales, y_TN if self.bias_N is None else self.bias_N, y_TN, partial, self.arrived,
            rows, outputs, padded, depth, self.group, -(-blocks // splits), splits, x_TK.stride(0),
            self.bits, tile.rows, tile.outputs, planes_a_scale(self.bits, self.group), self.half, self.bias_N is not None,
            depth % self.block == 0, apart, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    def _multiply_widened(self, x_TK: Tensor, y_TN: Tensor) -> None:
        outputs, depth = self.shape
        step = max(PADDING, WIDENED_BYTES // (depth * self.dtype.itemsize) // PADDING * PADDING)
        bias_N = None if self.bias_N is None else self.bias_N.to(self.dtype)
        for first in range(0, outputs, step):
            part = slice(first, min(first + step, outputs))
            dense_NK = self.dense(part)
            if bias_N is None:
                torch.mm(x_TK, dense_NK.t(), out=y_TN[:, part])
            else:
                torch.addmm(bias_N[part], x_TK, dense_NK.t(), out=y_TN[:, part])

    def dense(self, part: slice) -> Tensor:
        """Some neighbouring rows of the weight in `dtype`, columns as stored."""
        rows, depth = part.stop - part.start, self.shape[1]
        dense_NK = torch.empty((rows, depth), dtype=self.dtype, device=self.words.device)
        widen_kernel[(-(-rows // WIDEN_ROWS), self.words.shape[0])](
            self.words, self.scales, dense_NK, part.start, rows, self.words.shape[1], depth, self.group,
            self.bits, WIDEN_ROWS, self.half, num_warps=4,
        )  # fmt: skip
        return dense_NK


def planes_a_scale(bits: int, group: int) -> int:
    """Planes in a row that have one scale, in every block."""
    planes = 32 // bits
    if group % (planes * WORDS) == 0:
        return planes
    return group // WORDS if planes * WORDS % group == 0 else 1


def packed(
    weight: Quantised, bias_N: Tensor | None, device: torch.device, dtype: torch.dtype, fixed: bool
) -> PackedWeight:
    """The weight laid out on a device. With `fixed`, rows' bits do not depend on how many there are."""
    outputs, depth = weight.shape
    padded = -(-outputs // PADDING) * PADDING
    made = PackedWeight(
        shape=(outputs, depth),
        dtype=dtype,
        bits=weight.bits,
        group=weight.group,
        words=_words(weight.codes.to(device), weight.bits, padded),
        scales=_scales(weight, padded, device),
        arrived=torch.zeros(padded // FEW.outputs, dtype=torch.int32, device=device),
        order_K=None if weight.order_K is None else weight.order_K.to(device),
        bias_N=None if bias_N is None else bias_N.to(device, torch.float32),
        fixed=fixed,
    )
    return replace(made, tiles=_alike(made)) if fixed else made


def _words(codes: Tensor, bits: int, padded: int) -> Tensor:
    """Codes as words [blocks, padded, 16]; see the head of this file."""
    planes = 32 // bits
    codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1) if bits == 4 else codes.view(torch.uint8) ^ 128
    outputs, depth = codes.shape
    blocks = -(-depth // (planes * WORDS))
    codes = torch.nn.functional.pad(codes, (0, blocks * planes * WORDS - depth, 0, padded - outputs))
    codes_NBPW = codes.view(padded, blocks, planes, WORDS)
    words_NBW = codes_NBPW[:, :, 0].to(torch.int32)
    for plane in range(1, planes):
        words_NBW |= codes_NBPW[:, :, plane].to(torch.int32) << (bits * plane)
    return words_NBW.transpose(0, 1).contiguous()


def _scales(weight: Quantised, padded: int, device: torch.device) -> Tensor:
    """Scales and zeros side by side, as the bits of int32 words."""
    zero_NG = torch.zeros_like(weight.scale_NG) if weight.zero_NG is None else weight.zero_NG
    steps = torch.stack((weight.scale_NG, zero_NG), dim=-1).to(device)
    steps = torch.nn.functional.pad(steps, (0, 0, 0, 0, 0, padded - steps.shape[0]))
    return steps.transpose(0, 1).contiguous().view(torch.int32)


def _alike(weight: PackedWeight) -> tuple[Tile, ...]:
    draw = torch.Generator().manual_seed(0)
    x_TK = torch.randn(PROOF_ROWS, weight.shape[1], generator=draw).to(weight.words.device, weight.dtype)

    def run(tile: Tile) -> Tensor:
        y_TN = torch.empty(PROOF_ROWS, weight.shape[0], dtype=weight.dtype, device=x_TK.device)
        for first in range(0, PROOF_ROWS, tile.rows):
            weight._multiply_fused(x_TK[first : first + tile.rows], y_TN[first : first + tile.rows], tile)
        return y_TN

    return agreeing(TILES, BASE, run)


SIZES: Final = ("rows", "outputs", "padded", "depth", "group", "per_split", "splits", "x_stride")


def _shipped(tile: Tile, bits: int, group: int, apart: bool, half: bool = True, bias: bool = False) -> Shipped:
    pointers = {
        "x": "*bf16", "words": "*i32", "scales": "*i32", "bias": "*fp32" if bias else "*bf16", "y": "*bf16",
        "partial": "*fp32" if apart else "*i32", "arrived": "*i32",
    }  # fmt: skip
    marks = [
        f"w{bits}g{group}",
        f"{tile.rows}×{tile.outputs}",
        "apart" * apart,
        "fp16" if half else "fp32",
        "bias" * bias,
    ]
    return Shipped(
        name=" ".join(filter(None, marks)),
        kernel=product_kernel,
        signature=pointers | dict.fromkeys(SIZES, "i32"),
        constants={
            "BITS": bits, "TILE_T": tile.rows, "TILE_N": tile.outputs, "SHARED": planes_a_scale(bits, group), "HALF": half,
            "HAS_BIAS": bias, "EVEN": group != 576, "APART": apart,
        },
        aligned=(*pointers, "outputs", "padded", "depth", "group", "x_stride"),
        num_warps=tile.warps,
        num_stages=tile.stages,
        wgmma=True,
        overlap=True,
    )  # fmt: skip


def _shipped_widen(bits: int, half: bool) -> Shipped:
    pointers = {"words": "*i32", "scales": "*i32", "dense": "*bf16"}
    sizes = ("first_row", "rows", "padded", "depth", "group")
    return Shipped(
        name=f"widen w{bits} {'fp16' if half else 'fp32'}",
        kernel=widen_kernel,
        signature=pointers | dict.fromkeys(sizes, "i32"),
        constants={"BITS": bits, "TILE_N": WIDEN_ROWS, "HALF": half},
        aligned=(*pointers, "padded", "depth", "group"),
    )


SHIPPED: Final = (
    *(_shipped(tile, 4, 128, apart) for tile in TILES for apart in (True, False)),
    *(_shipped(tile, 4, 32, True, half=False) for tile in TILES),
    _shipped(FEW, 4, 64, True, bias=True),
    _shipped(FEW, 4, 16, True),
    _shipped(FEW, 4, 576, True),
    _shipped(FEW, 8, 128, True, bias=True),
    _shipped(FEW, 8, 32, True),
    _shipped(MANY, 8, 32, False, half=False),
    *(_shipped_widen(bits, half) for bits in (4, 8) for half in (True, False)),
)
