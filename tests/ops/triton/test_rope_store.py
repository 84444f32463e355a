"""rope_store as GPUs run it: rotation and norms against the reference, and what KV memory holds against the codec."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inference_stack.ops.api import HeadSpec
from inference_stack.ops.reference.kv_codec import encode
from tests.ops.parts import Paged, make_ops
from tests.ops.triton.gpu_parts import GpuOps, heads_of, projection

ULP = {
    torch.float32: (1e-5, 1e-5),
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (8e-3, 1e-5),
    torch.int8: (0.0, 1.0),
    torch.float8_e4m3fn: (0.125, 0.002),
}
"""Relative and absolute distance of neighbouring numbers: what rounding may differ by."""


def reference(heads: HeadSpec, qkv_TX: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """q_THE and k_TGE by the reference, which rotates keys as if they were more query heads."""
    both = HeadSpec(
        q_heads=heads.q_heads, kv_heads=heads.kv_heads, head_dim=heads.head_dim, rope=heads.rope,
        q_norm_E=heads.q_norm_E, k_norm_E=heads.k_norm_E,
    )  # fmt: skip
    page = Paged(both, granules=1)
    step, _ = page.step([(page.sequence(torch.zeros(start + len(qkv_TX), 1)), start, start + len(qkv_TX))])
    q_THE = make_ops().rope_store(qkv_TX, both, page.kv, step)
    units = page.kv.arena.view(torch.float32).view(-1, heads.kv_heads, 2, 16 * heads.head_dim)
    keys = units[(step.tables[0].entry_T * page.kv.granule_bytes + page.kv.offset_bytes) // page.kv.unit_bytes, :, 0]
    keys = keys.view(len(qkv_TX), heads.kv_heads, heads.head_dim, 16)
    place = step.tables[0].offset_T[:, None, None, None].expand(-1, *keys.shape[1:3], 1)
    return q_THE, keys.gather(-1, place).squeeze(-1)


def kept(page: Paged, token: int, step_entry: Tensor, offset: Tensor, head: int) -> tuple[Tensor, Tensor]:
    """The bytes of (key | value) of a token and head, and of its two scales (none but for int8)."""
    kv = page.kv
    size = 2 * kv.head_dim * kv.dtype.itemsize
    start = int(step_entry[token]) * kv.granule_bytes + kv.offset_bytes + head * (kv.unit_bytes // kv.kv_heads)
    numbers = kv.arena[start + int(offset[token]) * size :][:size]
    scales = kv.arena[start + 16 * size :][: 64 if kv.dtype == torch.int8 else 0].view(-1, 16, 2)
    return numbers.view(kv.dtype), scales[:, int(offset[token])].contiguous().view(torch.float16).flatten()


def comparable(expected: Tensor) -> Tensor:
    """Numbers that the interpreter rounds as cards do: in fp8 it loses the carry of what is rounded up to a power of two."""
    if expected.dtype != torch.float8_e4m3fn:
        return torch.ones_like(expected, dtype=torch.bool)
    return expected.float().frexp().mantissa.abs() != 0.5


@pytest.mark.parametrize("norms", ["", "qk", "q"])
@pytest.mark.parametrize(("q_heads", "kv_heads", "head_dim"), [(9, 3, 64), (4, 4, 24), (15, 1, 128)])
def test_queries_equal_the_references(q_heads: int, kv_heads: int, head_dim: int, norms: str) -> None:
    heads = heads_of(q_heads, kv_heads, head_dim, norms)
    page, qkv_TX = Paged(heads, granules=1), projection(heads, 7)
    step, _ = page.step([(page.sequence(torch.zeros(20, 1)), 13, 20)])
    got = GpuOps().rope_store(qkv_TX, heads, page.kv, step)
    torch.testing.assert_close(got, reference(heads, qkv_TX, 13)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ULP)
def test_memory_holds_keys_and_values_side_by_side(dtype: torch.dtype) -> None:
    heads = heads_of(3, 3, 24, "k")
    page, qkv_TX = Paged(heads, dtype=dtype, granules=3), projection(heads, 5)
    step, _ = page.step([(page.sequence(torch.zeros(20, 1)), 13, 18)])
    GpuOps().rope_store(qkv_TX, heads, page.kv, step)
    _, keys = reference(heads, qkv_TX, 13)
    values = qkv_TX.view(5, -1, 24)[:, -3:]
    table = step.tables[0]
    for token in range(5):
        for head in range(3):
            numbers, scales = kept(page, token, table.entry_T, table.offset_T, head)
            for side, x in enumerate((keys[token, head], values[token, head])):
                expected, scale = encode(x, dtype)
                found = numbers[side * 24 :][:24].float()
                rtol, atol = ULP[dtype]
                sound = comparable(expected)
                torch.testing.assert_close(found[sound], expected.float()[sound], rtol=rtol, atol=atol)
                if scale is not None:
                    torch.testing.assert_close(scales[side : side + 1], scale, rtol=1e-3, atol=0)


def test_nothing_else_is_written() -> None:
    heads = heads_of(2, 2, 16)
    page = Paged(heads, dtype=torch.float16, granules=1, blocks=8)
    step, qkv_TX = page.step([(page.sequence(projection(heads, 20)), 14, 18)])
    GpuOps().rope_store(qkv_TX, heads, page.kv, step)
    written = (page.kv.arena != 0xFF).view(-1, 2).any(1).sum()
    assert int(written) == 4 * 2 * 2 * 16


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 65504.0), (torch.float8_e4m3fn, 448.0)])
def test_narrow_numbers_saturate(dtype: torch.dtype, largest: float) -> None:
    heads = heads_of(1, 1, 16)
    page = Paged(heads, dtype=dtype, granules=1)
    qkv_TX = projection(heads, 1)
    qkv_TX[0, -2:] = torch.tensor([1e9, -torch.inf])
    step, _ = page.step([(page.sequence(torch.zeros(1, 1)), 0, 1)])
    GpuOps().rope_store(qkv_TX, heads, page.kv, step)
    numbers, _ = kept(page, 0, step.tables[0].entry_T, step.tables[0].offset_T, 0)
    assert numbers[-2:].float().tolist() == [largest, -largest]


def test_a_number_that_is_none_shows_in_its_int8_scale_alone() -> None:
    heads = heads_of(1, 2, 16)
    page = Paged(heads, dtype=torch.int8, granules=1)
    qkv_TX = projection(heads, 1)
    qkv_TX[0, -1] = torch.nan
    step, _ = page.step([(page.sequence(torch.zeros(1, 1)), 0, 1)])
    GpuOps().rope_store(qkv_TX, heads, page.kv, step)
    scales = [kept(page, 0, step.tables[0].entry_T, step.tables[0].offset_T, head)[1] for head in (0, 1)]
    assert scales[0].isfinite().all() and scales[1][0].isfinite() and scales[1][1].isnan()


def test_projections_may_lie_apart_and_be_half() -> None:
    heads = heads_of(4, 2, 16)
    page = Paged(heads, granules=1)
    step, qkv_TX = page.step([(page.sequence(projection(heads, 6)), 0, 6)])
    apart = torch.full((6, qkv_TX.shape[1] + 5), torch.nan, dtype=torch.float16)
    apart[:, : qkv_TX.shape[1]] = qkv_TX
    got = GpuOps().rope_store(apart[:, : qkv_TX.shape[1]], heads, page.kv, step)
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.float(), reference(heads, qkv_TX, 0)[0], rtol=1e-2, atol=1e-2)
