"""attend as GPUs run it: against the reference ops in every form of step, and against itself where bits must be equal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from inference_stack.ops.api import HeadSpec, Rope
from inference_stack.ops.triton.attention import work_list
from inference_stack.ops.triton.attention_decode import sharing
from inference_stack.ops.triton.attention_shapes import tile_for
from inference_stack.ops.triton.cards import H200_PROCESSORS, Room
from tests.ops.parts import Paged, PagedRequest, make_ops
from tests.ops.triton.gpu_parts import GpuOps, heads_of, projection, recorded_form

Parts = list[tuple[PagedRequest, int, int]]
ROOM = Room(H200_PROCESSORS, roomy=True)


@pytest.fixture(autouse=True)
def three_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small GPU, so that few programs are interpreted and yet rows are shared out."""
    monkeypatch.setattr("inference_stack.ops.triton.attention.room", lambda _: replace(ROOM, processors=3))


def both(
    heads: HeadSpec,
    bounds: list[tuple[int, int]],
    deterministic: bool = False,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    softcap: float = 0.0,
    sinks_H: Tensor | None = None,
    granules: int = 1,
    coarse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Outputs of one step (positions start … stop-1 of each request, all before known) by GPU ops and by the reference."""
    found = []
    for ops in (GpuOps(deterministic), make_ops()):
        page = Paged(heads, window=window, dtype=dtype, granules=granules)
        parts = [(page.sequence(projection(heads, stop, stop)), start, stop) for start, stop in bounds]
        for request, _, _ in parts if coarse else ():
            request.qkv_TX = (request.qkv_TX.clamp(-3.5, 3.5) * 4).round() / 4
        earlier = [(request, 0, start) for request, start, _ in parts if start]
        if earlier:
            ops.rope_store(*_stored(page, earlier))
        found.append(torch.cat(page.run(ops, parts, softcap, sinks_H)))  # type: ignore[arg-type]
    return found[0], found[1]


def _stored(page: Paged, parts: Parts) -> tuple[Tensor, HeadSpec, object, object]:
    step, qkv_TX = page.step(parts)
    return qkv_TX, page.heads, page.kv, step


MIXED = [(29, 30), (0, 25), (0, 1), (70, 75), (40, 64)]
"""Decode, a prompt, a lone token, a verified draft, a chunk."""


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("window", [None, 21])
def test_a_mixed_step_equals_the_reference(deterministic: bool, window: int | None) -> None:
    got, expected = both(heads_of(6, 2), MIXED, deterministic, window)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "head_dim"), [(2, 2, 64), (3, 1, 96), (4, 1, 128), (8, 1, 16), (7, 1, 80), (20, 1, 16)]
)
def test_groups_and_head_dimensions(q_heads: int, kv_heads: int, head_dim: int) -> None:
    got, expected = both(heads_of(q_heads, kv_heads, head_dim), [(75, 76), (0, 23)])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn])
def test_kv_dtypes(dtype: torch.dtype) -> None:
    """With numbers that every dtype holds exactly: the interpreter does not round to bf16 and fp8 as GPUs do."""
    heads = heads_of(4, 2, 32)
    still = Rope(cos_PE=torch.ones(100, 32), sin_PE=torch.zeros(100, 32))
    got, expected = both(
        replace(heads, rope=still), [(69, 70), (0, 37)], dtype=dtype, window=40, granules=2, coarse=True
    )
    tolerance = 2e-2 if dtype == torch.int8 else 1e-5
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("deterministic", [False, True])
def test_scores_are_capped_and_sinks_take_their_share(deterministic: bool) -> None:
    sinks_H = torch.tensor([-50.0, 0.0, 4.0, 150.0])
    got, expected = both(heads_of(4, 2), [(65, 66), (0, 40)], deterministic, softcap=3.0, sinks_H=sinks_H)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("deterministic", [False, True])
def test_activations_in_fp16(deterministic: bool) -> None:
    heads = heads_of(4, 2, 32)
    page = Paged(heads, dtype=torch.float16, granules=1)
    step, qkv_TX = page.step([(page.sequence(projection(heads, 70)), 0, 70)])
    ops = GpuOps(deterministic)
    q_THE = ops.rope_store(qkv_TX.half(), heads, page.kv, step)
    got = ops.attend(q_THE, page.kv, step, 0.2)
    assert got.dtype == torch.float16
    other = Paged(heads, dtype=torch.float16, granules=1)
    again, _ = other.step([(other.sequence(qkv_TX), 0, 70)])
    reference = make_ops()
    expected = reference.attend(
        reference.rope_store(qkv_TX.half().float(), heads, other.kv, again), other.kv, again, 0.2
    )
    torch.testing.assert_close(got.float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("window", [None, 50])
def test_recorded_steps_read_lengths_on_the_device(deterministic: bool, window: int | None) -> None:
    heads = heads_of(6, 2)
    page = Paged(heads, window=window, granules=1)
    parts = [(page.sequence(projection(heads, length, length)), length - 1, length) for length in (1, 140, 33)]
    ops = GpuOps(deterministic)
    ops.rope_store(*_stored(page, [(request, 0, stop - 1) for request, _, stop in parts if stop > 1]))
    eager, qkv_TX = page.step(parts)
    expected = ops.attend(ops.rope_store(qkv_TX, heads, page.kv, eager), page.kv, eager, 0.25)
    step = recorded_form(eager, padding=2, parked=page._free[-1])
    padded_TX = torch.cat([qkv_TX, torch.zeros(2, qkv_TX.shape[1])])
    got = ops.attend(ops.rope_store(padded_TX, heads, page.kv, step), page.kv, step, 0.25)
    torch.testing.assert_close(got[:3], expected, rtol=1e-6, atol=1e-6)
    assert got[3:].eq(0).all()


def test_memory_that_no_query_sees_does_not_matter() -> None:
    heads = heads_of(2, 1)
    outputs = []
    for poison in (0.0, torch.nan):
        page = Paged(heads, window=20, granules=1)
        request = page.sequence(projection(heads, 70))
        ops = GpuOps()
        ops.rope_store(*_stored(page, [(request, 0, 69)]))
        units = page.kv.arena.view(torch.float32)
        width, start = page.kv.unit_bytes // 4, page.kv.offset_bytes // 4
        for block in (0, 1, 2):
            units[start + request.entries[block] * page.kv.granule_bytes // 4 :][:width] = poison
        request.entries[0] = 0
        outputs += page.run(ops, [(request, 69, 70)])  # type: ignore[arg-type]
    assert torch.equal(outputs[0], outputs[1])
    assert outputs[0].isfinite().all()


@pytest.mark.parametrize("window", [None, 100])
def test_in_deterministic_mode_a_query_has_the_same_bits_in_every_form_of_step(window: int | None) -> None:
    heads, length = heads_of(4, 1), 270
    ops = GpuOps(deterministic=True)

    def fresh() -> tuple[Paged, PagedRequest]:
        page = Paged(heads, window=window, granules=1)
        return page, page.sequence(projection(heads, length))

    page, request = fresh()
    [prefilled] = page.run(ops, [(request, 0, length)])  # type: ignore[arg-type]
    other = page.sequence(projection(heads, 90, 7))
    for start in (length - 1, length - 5, length - 20):  # decode, a verified draft, a chunk
        [alone] = page.run(ops, [(request, start, length)])  # type: ignore[arg-type]
        assert torch.equal(alone, prefilled[start:])
    beside = page.run(ops, [(other, 0, 90), (request, length - 3, length), (other, 89, 90)])  # type: ignore[arg-type]
    assert torch.equal(beside[1], prefilled[-3:])
    step, qkv_TX = page.step([(request, length - 1, length)])
    q_THE = ops.rope_store(qkv_TX, heads, page.kv, step)
    for processors in (1, 132):  # one program walks over all lanes, or each has one
        step = recorded_form(step, padding=0, parked=0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "inference_stack.ops.triton.attention.room", lambda _, n=processors: replace(ROOM, processors=n)
            )
            assert torch.equal(ops.attend(q_THE, page.kv, step, heads.head_dim**-0.5), prefilled[-1:])


@pytest.mark.slow
def test_lanes_are_dealt_out_again_beyond_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_stack.ops.triton.attention_shapes.LANES", 2)
    got, expected = both(heads_of(2, 1), [(1039, 1040), (1000, 1035)], deterministic=True)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_the_work_list_has_every_tile_once_and_the_longest_first() -> None:
    heads = heads_of(4, 2)
    page = Paged(heads, granules=1)
    parts = [(page.sequence(torch.zeros(stop, 1)), start, stop) for start, stop in ((0, 100), (9, 10), (200, 270))]
    step, _ = page.step(parts)
    pairs = torch.tensor([200, 2, 140]).numpy()
    work = work_list(step, 2, pairs, pairs <= 64, 64)
    assert sorted(map(tuple, work.tolist())) == [(0, 0), (0, 1), (0, 2), (0, 3), (2, 0), (2, 1), (2, 2)]
    assert work[:3, 0].tolist() == [2, 2, 2]
    assert work[3:, 1].tolist() == [3, 2, 1, 0]


def test_a_long_prompts_tiles_go_before_a_short_ones() -> None:
    page = Paged(heads_of(4, 1), granules=1)
    parts = [(page.sequence(torch.zeros(stop, 1)), 0, stop) for stop in (96, 400)]
    step, _ = page.step(parts)
    pairs = torch.tensor([4 * 96, 4 * 400]).numpy()
    work = work_list(step, 4, pairs, pairs <= 64, 64)
    seen = [min((tile + 1) * 16, (96, 400)[row]) for row, tile in work.tolist()]
    assert seen == sorted(seen, reverse=True)


def test_rows_are_shared_out_only_while_their_states_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [(90, 97), (300, 301), (0, 5)]
    roomy, _ = both(heads_of(4, 2), parts, deterministic=True)
    monkeypatch.setattr("inference_stack.ops.triton.attention.MOST_STATES", 1)
    tight, _ = both(heads_of(4, 2), parts, deterministic=True)
    assert torch.equal(roomy, tight)


def test_shares_follow_from_shapes() -> None:
    free, fixed = (tile_for(4, 4, 128, deterministic, True) for deterministic in (False, True))
    assert sharing(1, 8, 8192, free, 132).programs == 64
    assert sharing(256, 8, 64, free, 132) == sharing(256, 8, 8192, free, 132)
    assert sharing(256, 8, 8192, free, 132).slots == 0
    assert sharing(1, 8, 8192, fixed, 132).slots == 32
    assert sharing(1, 8, 64, fixed, 132).slots == 4
