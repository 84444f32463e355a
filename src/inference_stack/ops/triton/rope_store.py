"""`rope_store` in one launch: q and k normalised per head when asked, rotated by position; k and v written to KV memory.

    a program: one token, 16 neighbouring heads of its fused projection (q | k | v)

Arithmetic is fp32, rounded once when stored. Floor: T · ((H + 2G) + H) · E activations and T · 2G · E KV numbers moved once;
tables and addresses come from the caches. It knows nothing of who reads KV.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from inference_stack.ops.api import HeadSpec, KvLayer, Rope, StepInputs
from inference_stack.ops.triton.cards import check_device
from inference_stack.ops.triton.kernel import Shipped, kernel, kernel_for_any
from inference_stack.ops.triton.kv_memory import NAMES, TYPES, KvView, view
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace

HEADS: Final = 16
"""Heads of one program."""
WARPS: Final = 4
ROUNDER: Final = tl.constexpr(12582912.0)
"""1.5 · 2²³: adding and subtracting it rounds a small fp32 number to an integer, ties to even."""
LARGEST_HALF: Final = tl.constexpr(65504.0)
LARGEST_FP8: Final = tl.constexpr(448.0)
CODES: Final = tl.constexpr(127.0)


@kernel
def saturated(x: tl.tensor, LARGEST: tl.constexpr) -> tl.tensor:
    """x within ± LARGEST; what is not a number stays so."""
    x = tl.where(x > LARGEST, LARGEST, x)
    return tl.where(x < -LARGEST, -LARGEST, x)


@kernel
def stored_as(x: tl.tensor, KV: tl.constexpr) -> tl.tensor:
    """fp32 as KV memory keeps it; fp16 and fp8 saturate."""
    if tl.float16 == KV:
        x = saturated(x, LARGEST_HALF)
    elif tl.float8e4nv == KV:
        x = saturated(x, LARGEST_FP8)
    return x.to(KV)


@kernel
def coded(x: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """int8 codes of x under fp16 scales [heads]; 0 where the scale is 0 or no finite number."""
    divisor = scale.to(tl.float32)
    usable = divisor > 0.0
    codes = tl.div_rn(x, tl.where(usable, divisor, 1.0)[:, None] + tl.zeros_like(x))
    codes = saturated(codes, CODES)
    codes = (codes + ROUNDER) - ROUNDER
    return tl.where(usable[:, None], codes, 0.0).to(tl.int8)


@kernel
def scale_of(x1: tl.tensor, x2: tl.tensor) -> tl.tensor:
    """Each head's int8 scale, fp16 [heads]: its largest magnitude over 127, NaN where it has any."""
    largest = tl.maximum(tl.max(tl.abs(x1), 1), tl.max(tl.abs(x2), 1))
    strange = tl.maximum(tl.max((x1 != x1).to(tl.int32), 1), tl.max((x2 != x2).to(tl.int32), 1))
    scale = tl.div_rn(largest, tl.full(largest.shape, CODES, tl.float32))
    return tl.where(strange > 0, float("nan"), saturated(scale, LARGEST_HALF)).to(tl.float16)


@kernel_for_any("positions", "entries", "offsets", "first")
def rope_store_kernel(
    qkv: tl.tensor,
    q_out: tl.tensor,
    arena: tl.tensor,
    positions: tl.tensor,
    cosines: tl.tensor,
    sines: tl.tensor,
    q_norm: tl.tensor,
    k_norm: tl.tensor,
    entries: tl.tensor,
    offsets: tl.tensor,
    first: tl.tensor,
    qkv_stride: tl.tensor,
    granule: tl.tensor,
    eps: tl.tensor,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    E: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    KV: tl.constexpr,
    HEAD_BYTES: tl.constexpr,
) -> None:
    """`first` is the layer's offset in granules; `granule` in bytes. Head dimension E = 2 · HALF, BLOCK a power of two ≥ HALF."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * 16 + tl.arange(0, 16)
    is_q = (head < Q_HEADS)[:, None]
    is_k = ((head >= Q_HEADS) & (head < Q_HEADS + KV_HEADS))[:, None]
    is_v = ((head >= Q_HEADS + KV_HEADS) & (head < Q_HEADS + 2 * KV_HEADS))[:, None]
    e = tl.arange(0, BLOCK)
    width = (e < HALF)[None, :]
    inside = (head < Q_HEADS + 2 * KV_HEADS)[:, None] & width
    source = qkv + token * qkv_stride + head[:, None] * E + e[None, :]
    x1 = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    angle = tl.load(positions + token) * E + e
    cos1 = tl.load(cosines + angle, mask=e < HALF, other=1.0)[None, :]
    cos2 = tl.load(cosines + angle + HALF, mask=e < HALF, other=1.0)[None, :]
    sin1 = tl.load(sines + angle, mask=e < HALF, other=0.0)[None, :]
    sin2 = tl.load(sines + angle + HALF, mask=e < HALF, other=0.0)[None, :]
    n1, n2 = x1, x2
    if Q_NORM or K_NORM:
        mean = (tl.sum(x1 * x1, 1) + tl.sum(x2 * x2, 1)) / E
        root = (1.0 / tl.sqrt(mean + eps))[:, None]
        if Q_NORM:
            w1 = tl.load(q_norm + e, mask=e < HALF, other=0.0).to(tl.float32)[None, :]
            w2 = tl.load(q_norm + e + HALF, mask=e < HALF, other=0.0).to(tl.float32)[None, :]
            n1, n2 = tl.where(is_q, x1 * root * w1, n1), tl.where(is_q, x2 * root * w2, n2)
        if K_NORM:
            w1 = tl.load(k_norm + e, mask=e < HALF, other=0.0).to(tl.float32)[None, :]
            w2 = tl.load(k_norm + e + HALF, mask=e < HALF, other=0.0).to(tl.float32)[None, :]
            n1, n2 = tl.where(is_k, x1 * root * w1, n1), tl.where(is_k, x2 * root * w2, n2)
    y1 = tl.where(is_v, x1, n1 * cos1 - n2 * sin1)
    y2 = tl.where(is_v, x2, n2 * cos2 + n1 * sin2)
    q_at = q_out + token * (Q_HEADS * E) + head[:, None] * E + e[None, :]
    tl.store(q_at, y1.to(q_out.dtype.element_ty), mask=is_q & width)
    tl.store(q_at + HALF, y2.to(q_out.dtype.element_ty), mask=is_q & width)
    keeps = (is_k | is_v) & width
    kv_head = tl.where(is_v, head[:, None] - Q_HEADS - KV_HEADS, head[:, None] - Q_HEADS)
    unit = arena + (tl.load(entries + token) + first) * granule
    offset = tl.load(offsets + token)
    numbers = (unit + kv_head * HEAD_BYTES).to(tl.pointer_type(KV))
    at = numbers + offset * (2 * E) + tl.where(is_v, E, 0) + e[None, :]
    if tl.int8 == KV:
        scale = scale_of(y1, y2)
        tl.store(at, coded(y1, scale), mask=keeps)
        tl.store(at + HALF, coded(y2, scale), mask=keeps)
        scales = (unit + kv_head * HEAD_BYTES + 32 * E).to(tl.pointer_type(tl.float16))
        tl.store(scales + offset + tl.where(is_v, 16, 0), scale[:, None], mask=is_k | is_v)
    else:
        tl.store(at, stored_as(y1, KV), mask=keeps)
        tl.store(at + HALF, stored_as(y2, KV), mask=keeps)


class RopeStore:
    """`Ops.rope_store`."""

    def __init__(self, workspace: Workspace, settings: TritonSettings) -> None:
        self._workspace = workspace

    def __call__(self, qkv_TX: Tensor, heads: HeadSpec, kv: KvLayer, step: StepInputs) -> Tensor:
        """q_THE rotated, in the dtype of `qkv_TX`; k and v are in the arena. Raises ValueError for KV in fp8 on a card without."""
        tokens, width = qkv_TX.shape[0], heads.head_dim
        check_device(kv.dtype, qkv_TX.device)
        q_THE = self._workspace.take_like(qkv_TX, (tokens, heads.q_heads, width), qkv_TX.dtype)
        if tokens == 0:
            return q_THE
        memory, table, rope = view(kv), step.tables[kv.group], heads.rope
        grid = (tokens, triton.cdiv(heads.q_heads + 2 * heads.kv_heads, HEADS))
        rope_store_kernel[grid](
            qkv_TX,
            q_THE,
            kv.arena,
            step.positions_T,
            rope.cos_PE,
            rope.sin_PE,
            heads.q_norm_E if heads.q_norm_E is not None else rope.cos_PE,
            heads.k_norm_E if heads.k_norm_E is not None else rope.cos_PE,
            table.entry_T,
            table.offset_T,
            memory.first,
            qkv_TX.stride(0),
            memory.granule,
            heads.norm_eps,
            **_constants(heads, memory),
            num_warps=WARPS,
        )
        return q_THE


def _constants(heads: HeadSpec, memory: KvView) -> dict[str, Any]:
    half = heads.head_dim // 2
    return {
        "Q_HEADS": heads.q_heads,
        "KV_HEADS": heads.kv_heads,
        "E": heads.head_dim,
        "HALF": half,
        "BLOCK": triton.next_power_of_2(half),
        "Q_NORM": heads.q_norm_E is not None,
        "K_NORM": heads.k_norm_E is not None,
        "KV": memory.type,
        "HEAD_BYTES": memory.head_bytes,
    }


MODELS: Final = {
    "Llama-3.1-8B": (32, 8, 128, False),
    "Qwen3-8B": (32, 8, 128, True),
    "Qwen2.5-7B": (28, 4, 128, False),
    "Qwen3-30B-A3B": (32, 4, 128, True),
    "SmolLM2-135M": (9, 3, 64, False),
}
"""q heads, KV heads, head dimension, head norms."""


def _shipped() -> Iterator[Shipped]:
    pointers = {"q_norm": "*bf16", "k_norm": "*bf16", "qkv": "*bf16", "q_out": "*bf16", "arena": "*u8"}
    tables = {"cosines": "*fp32", "sines": "*fp32", "positions": "*i64", "entries": "*i64", "offsets": "*i64"}
    numbers = {"first": "i32", "qkv_stride": "i32", "granule": "i32", "eps": "fp32"}
    aligned = ("qkv", "q_out", "arena", "cosines", "sines", "q_norm", "k_norm", "qkv_stride", "granule")
    for model, (q_heads, kv_heads, width, normed) in MODELS.items():
        nothing = torch.empty(0)
        norm = nothing if normed else None
        heads = HeadSpec(
            q_heads=q_heads,
            kv_heads=kv_heads,
            head_dim=width,
            rope=Rope(cos_PE=nothing, sin_PE=nothing),
            q_norm_E=norm,
            k_norm_E=norm,
        )
        for dtype in (
            (torch.bfloat16, torch.int8, torch.float8_e4m3fn) if model == "Llama-3.1-8B" else (torch.bfloat16,)
        ):
            scales = 64 if dtype == torch.int8 else 0
            memory = KvView(TYPES[dtype], 0, 0, 32 * width * dtype.itemsize + scales)
            yield Shipped(
                name=f"rope_store {model} {NAMES[dtype]}",
                kernel=rope_store_kernel,
                signature=pointers | tables | numbers,
                constants=_constants(heads, memory),
                aligned=aligned,
                num_warps=WARPS,
                archs=(89, 90) if dtype == torch.float8_e4m3fn else (80, 89, 90),
            )


SHIPPED: Final = tuple(_shipped())
