"""rope_store and attend over a scattered, NaN-poisoned arena, against float64 and against themselves in other batches."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inference_stack.ops.api import HeadSpec
from inference_stack.ops.facade import BoundOps
from tests.ops.parts import Paged, make_ops, rope_table

ROPE = rope_table(1024, 16)


def heads_of(q_heads: int, kv_heads: int, norm: bool = False) -> HeadSpec:
    weight = torch.linspace(0.5, 1.5, 16) if norm else None
    return HeadSpec(q_heads=q_heads, kv_heads=kv_heads, head_dim=16, rope=ROPE, q_norm_E=weight, k_norm_E=weight)


def projection(heads: HeadSpec, tokens: int, seed: int = 0) -> Tensor:
    width = (heads.q_heads + 2 * heads.kv_heads) * heads.head_dim
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed)) * 2


def turned(x: Tensor, heads: HeadSpec) -> Tensor:
    """Rotation by position of float64 [T, heads, E]."""
    cos, sin = (table.double()[: x.shape[0], None] for table in (heads.rope.cos_PE, heads.rope.sin_PE))
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What the KV memory keeps of float64 [T, heads, E], by the definition."""
    if dtype != torch.int8:
        return x.to(dtype).double()
    scale = (x.abs().amax(-1, keepdim=True).float() / 127).half().double()
    return (x / scale).round().clamp(-127, 127) * scale


def oracle(
    qkv: Tensor,
    heads: HeadSpec,
    window: int | None,
    dtype: torch.dtype,
    softcap: float = 0.0,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Plain attention over a whole sequence, float64."""
    tokens = qkv.shape[0]
    x = qkv.double().view(tokens, -1, heads.head_dim)
    q, k, v = x.split([heads.q_heads, heads.kv_heads, heads.kv_heads], dim=1)
    if heads.q_norm_E is not None:
        q, k = (y / (y.square().mean(-1, keepdim=True) + heads.norm_eps).sqrt() * heads.q_norm_E for y in (q, k))
    q, k = turned(q, heads), turned(k, heads)
    k, v = (stored(y, dtype).repeat_interleave(heads.q_heads // heads.kv_heads, 1) for y in (k, v))
    scores = torch.einsum("qhe,khe->hqk", q, k) * heads.head_dim**-0.5
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    scores = scores.masked_fill(hidden, -torch.inf)
    if sinks_H is not None:
        scores = torch.cat([scores, sinks_H.double()[:, None, None].expand(-1, tokens, 1)], -1)
    shares = scores.softmax(-1)[..., :tokens]
    return torch.einsum("hqk,khe->qhe", shares, v).reshape(tokens, -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(("q_heads", "kv_heads"), [(9, 3), (4, 4), (8, 1)])
def test_prefill_matches_float64(
    ops: BoundOps, q_heads: int, kv_heads: int, window: int | None, dtype: torch.dtype
) -> None:
    heads = heads_of(q_heads, kv_heads, norm=kv_heads == 3)
    page = Paged(heads, window=window, dtype=dtype, granules=4)
    sequences = [page.sequence(projection(heads, tokens, tokens)) for tokens in (1, 300, 17)]
    got = page.run(ops, [(sequence, 0, sequence.qkv_TX.shape[0]) for sequence in sequences])
    tolerance = {torch.float32: 1e-4, torch.int8: 1e-1}.get(dtype, 2e-2)
    for sequence, o in zip(sequences, got, strict=True):
        expected = oracle(sequence.qkv_TX, heads, window, dtype)
        torch.testing.assert_close(o.double(), expected, rtol=tolerance, atol=tolerance)


def test_kv_in_fp8_saturates() -> None:
    heads = heads_of(4, 2)
    page = Paged(heads, dtype=torch.float8_e4m3fn, granules=4)
    sequence = page.sequence(projection(heads, 40))
    sequence.qkv_TX[:, -1] = 1e6
    [got] = page.run(make_ops(), [(sequence, 0, 40)])
    qkv = sequence.qkv_TX.clone()
    qkv[:, -1] = 448.0
    torch.testing.assert_close(got.double(), oracle(qkv, heads, None, torch.float8_e4m3fn), rtol=0.1, atol=0.3)
    torch.testing.assert_close(got[:, -1], torch.full((40,), 448.0))


@pytest.mark.parametrize("window", [None, 40])
def test_sinks_take_their_share(ops: BoundOps, window: int | None) -> None:
    heads = heads_of(6, 2)
    page = Paged(heads, window=window, granules=1)
    sinks_H = torch.tensor([-100.0, -2.0, 0.0, 3.0, 40.0, 200.0])
    sequences = [page.sequence(projection(heads, tokens, tokens)) for tokens in (1, 300, 17)]
    got = page.run(ops, [(sequence, 0, sequence.qkv_TX.shape[0]) for sequence in sequences], sinks_H=sinks_H)
    for sequence, o in zip(sequences, got, strict=True):
        expected = oracle(sequence.qkv_TX, heads, window, torch.float32, sinks_H=sinks_H)
        torch.testing.assert_close(o.double(), expected, rtol=1e-4, atol=1e-4)


def test_softcap_bounds_the_scores(ops: BoundOps) -> None:
    heads = heads_of(4, 2)
    page = Paged(heads, granules=1)
    qkv = projection(heads, 200)
    [got] = page.run(ops, [(page.sequence(qkv), 0, 200)], softcap=2.0)
    expected = oracle(qkv, heads, None, torch.float32, softcap=2.0)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_large_numbers_saturate_and_nan_stays(ops: BoundOps, dtype: torch.dtype) -> None:
    heads = heads_of(1, 1)
    page = Paged(heads, dtype=dtype, granules=1)
    qkv = torch.zeros(3, 48)
    qkv[0, 32], qkv[1, 33], qkv[2, 34] = 1e9, -torch.inf, torch.nan
    sequence = page.sequence(qkv)
    first, second, third = (page.run(ops, [(sequence, at, at + 1)])[0] for at in range(3))
    assert first.isfinite().all() and first[0, 0] >= 65504
    assert second.isfinite().all() and second[0, 1] <= -32752
    assert third.isnan().any()


@pytest.mark.parametrize("window", [None, 20, 150])
@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, 399), max_size=6), others=st.lists(st.integers(1, 70), max_size=4))
def test_a_row_is_the_same_chunked_and_in_any_batch(
    ops: BoundOps, window: int | None, cuts: list[int], others: list[int]
) -> None:
    heads = heads_of(6, 2)
    page = Paged(heads, window=window, granules=2)
    qkv = projection(heads, 400)
    alone = page.run(ops, [(page.sequence(qkv), 0, 400)])[0]
    again = page.sequence(qkv)
    neighbours = [page.sequence(projection(heads, tokens, tokens)) for tokens in others]
    pieces = []
    edges = sorted({0, 400, *cuts})
    for number, (start, stop) in enumerate(pairwise(edges)):
        around = [(one, 0, one.qkv_TX.shape[0]) for one in neighbours]
        place = number % (len(around) + 1)
        parts = [*around[:place], (again, start, stop), *around[place:]]
        pieces.append(page.run(ops, parts)[place])
    assert torch.equal(torch.cat(pieces), alone)


def test_decode_of_every_position_equals_prefill(ops: BoundOps) -> None:
    heads = heads_of(3, 1)
    page = Paged(heads, granules=1)
    qkv = projection(heads, 140)
    whole = page.run(ops, [(page.sequence(qkv), 0, 140)])[0]
    again = page.sequence(qkv)
    steps = [page.run(ops, [(again, at, at + 1)])[0] for at in range(140)]
    assert torch.equal(torch.cat(steps), whole)


def test_many_decodes_of_different_lengths_equal_each_alone(ops: BoundOps) -> None:
    heads = heads_of(9, 3)
    page = Paged(heads, granules=3)
    lengths = [1, 15, 16, 17, 127, 128, 129, 300, 2, 256]
    sequences = [page.sequence(projection(heads, length, length)) for length in lengths]
    for sequence, length in zip(sequences, lengths, strict=True):
        page.run(ops, [(sequence, 0, length)])
    alone = [page.run(ops, [(s, n - 1, n)])[0] for s, n in zip(sequences, lengths, strict=True)]
    together = page.run(ops, [(s, n - 1, n) for s, n in zip(sequences, lengths, strict=True)])
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_blocks_left_behind_by_the_window_do_not_matter(ops: BoundOps) -> None:
    heads = heads_of(2, 1)
    page = Paged(heads, window=20, granules=1)
    qkv = projection(heads, 200)
    whole = page.run(ops, [(page.sequence(qkv), 0, 200)])[0]
    again = page.sequence(qkv)
    page.run(ops, [(again, 0, 199)])
    again.entries[: (199 - 20 + 1) // 16] = [0] * ((199 - 20 + 1) // 16)
    assert torch.equal(page.run(ops, [(again, 199, 200)])[0], whole[199:])


@pytest.mark.parametrize(("dtype", "written"), [(torch.float32, 128), (torch.float16, 64), (torch.int8, 36)])
def test_store_writes_its_tokens_and_nothing_else(ops: BoundOps, dtype: torch.dtype, written: int) -> None:
    heads = heads_of(2, 2)
    page = Paged(heads, dtype=dtype, granules=2)
    sequence = page.sequence(projection(heads, 21))
    before = page.kv.arena.clone()
    step, qkv = page.step([(sequence, 3, 21)])
    ops.rope_store(qkv, heads, page.kv, step)
    changed = int((page.kv.arena != before).sum())
    most = 18 * heads.kv_heads * written
    assert 0.9 * most < changed <= most  # a byte may be written as it was
