"""Native rope_store and attend against the reference, and against themselves: on every ISA, in any batch, chunking and threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inference_stack.ops.api import HeadSpec
from inference_stack.ops.cpu.native import extension
from inference_stack.ops.facade import BoundOps
from tests.ops.parts import Paged, PagedRequest, make_ops, native_sets, rope_table

REFUSED = extension()
pytestmark = pytest.mark.skipif(isinstance(REFUSED, str), reason=str(REFUSED))

SETS = native_sets()
FASTEST = SETS[0] if SETS else "none"
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]
Parts = list[tuple[PagedRequest, int, int]]


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    """The reference's bits do not depend on threads, but its barriers are slow where others use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def heads_of(q_heads: int, kv_heads: int, head_dim: int, norm: bool = False) -> HeadSpec:
    weight = torch.linspace(0.5, 1.5, head_dim) if norm else None
    rope = rope_table(1024, head_dim)
    return HeadSpec(q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim, rope=rope, q_norm_E=weight, k_norm_E=weight)


def projection(heads: HeadSpec, tokens: int) -> Tensor:
    width = (heads.q_heads + 2 * heads.kv_heads) * heads.head_dim
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(tokens)) * 2


def requests(page: Paged, lengths: Iterable[int]) -> list[PagedRequest]:
    return [page.sequence(projection(page.heads, length)) for length in lengths]


def ragged(page: Paged) -> list[Parts]:
    """Steps that mix prefill, chunks, verification and decode, over rows that begin and end inside tiles and blocks."""
    long, one, middle, short = requests(page, (600, 1, 290, 33))
    return [
        [(long, 0, 270), (one, 0, 1), (middle, 0, 289)],
        [(long, 270, 590), (short, 0, 33), (middle, 289, 290)],
        [(long, 590, 595)],
        [(long, 595, 596)],
    ]


def outputs(ops: BoundOps, page: Paged, steps: list[Parts], softcap: float = 0.0) -> Tensor:
    return torch.cat([torch.cat(page.run(ops, parts, softcap)) for parts in steps])


def error(got: Tensor, expected: Tensor) -> float:
    """The largest difference of a row, relative to the row's largest number."""
    return float(((got - expected).abs().amax(1) / expected.abs().amax(1)).max())


def pages(heads: HeadSpec, dtype: torch.dtype, window: int | None) -> tuple[Paged, Paged]:
    first, second = (Paged(heads, window=window, dtype=dtype, granules=2) for _ in range(2))
    return first, second


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 40, 300])
@pytest.mark.parametrize(("q_heads", "kv_heads", "head_dim"), [(9, 3, 64), (2, 2, 18), (8, 1, 80)])
def test_native_equals_the_reference(
    q_heads: int, kv_heads: int, head_dim: int, window: int | None, dtype: torch.dtype
) -> None:
    ours, theirs = pages(heads_of(q_heads, kv_heads, head_dim), dtype, window)
    got = outputs(make_ops(kernels=FASTEST), ours, ragged(ours))
    expected = outputs(make_ops(), theirs, ragged(theirs))
    assert error(got, expected) <= 1e-5
    assert torch.equal(ours.kv.arena, theirs.kv.arena)


@pytest.mark.parametrize("head_dim", [2, 96, 256])
def test_other_head_dimensions(head_dim: int) -> None:
    ours, theirs = pages(heads_of(4, 2, head_dim), torch.float16, None)
    steps, same = ([[(sequence, 0, 40)] for sequence in requests(page, (40,))] for page in (ours, theirs))
    assert error(outputs(make_ops(kernels=FASTEST), ours, steps), outputs(make_ops(), theirs, same)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
@pytest.mark.parametrize("softcap", [0.5, 50.0])
def test_softcap_equals_the_reference(softcap: float, dtype: torch.dtype) -> None:
    ours, theirs = pages(heads_of(6, 2, 32), dtype, None)
    got = outputs(make_ops(kernels=FASTEST), ours, ragged(ours), softcap)
    assert error(got, outputs(make_ops(), theirs, ragged(theirs), softcap)) <= 1e-5


def test_norms_before_rotation_equal_the_reference() -> None:
    ours, theirs = pages(heads_of(4, 2, 24, norm=True), torch.float32, None)
    [mine], [same] = (requests(page, (50,)) for page in (ours, theirs))
    got = outputs(make_ops(kernels=FASTEST), ours, [[(mine, 0, 50)]])
    assert error(got, outputs(make_ops(), theirs, [[(same, 0, 50)]])) <= 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("window", "softcap"), [(None, 0.0), (70, 8.0)])
def test_every_kernel_set_gives_the_same_bits(window: int | None, softcap: float, dtype: torch.dtype) -> None:
    found = []
    for kernels in SETS:
        page = Paged(heads_of(6, 2, 24, norm=True), window=window, dtype=dtype, granules=2)
        found.append((outputs(make_ops(kernels=kernels), page, ragged(page), softcap), page.kv.arena))
    for o, arena in found[1:]:
        assert torch.equal(o, found[0][0])
        assert torch.equal(arena, found[0][1])


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_the_number_of_threads_changes_no_bit(threads: int, dtype: torch.dtype) -> None:
    one, many = pages(heads_of(9, 3, 32), dtype, None)
    alone, together = make_ops(kernels=FASTEST, threads=1), make_ops(kernels=FASTEST, threads=threads)
    expected = outputs(alone, one, ragged(one))
    assert torch.equal(outputs(together, many, ragged(many)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
@pytest.mark.parametrize("window", [None, 20, 150])
@settings(max_examples=6, deadline=None)
@given(cuts=st.lists(st.integers(1, 599), max_size=6), others=st.lists(st.integers(1, 70), max_size=4))
def test_a_row_is_the_same_chunked_and_in_any_batch(
    window: int | None, dtype: torch.dtype, cuts: list[int], others: list[int]
) -> None:
    ops, heads = make_ops(kernels=FASTEST), heads_of(6, 2, 16)
    page = Paged(heads, window=window, dtype=dtype, granules=1)
    whole, again, *neighbours = requests(page, (600, 600, *others))
    [alone] = page.run(ops, [(whole, 0, 600)])
    pieces = []
    for number, (start, stop) in enumerate(pairwise(sorted({0, 600, *cuts}))):
        parts = [(one, 0, one.qkv_TX.shape[0]) for one in neighbours]
        place = number % (len(parts) + 1)
        parts.insert(place, (again, start, stop))
        pieces.append(page.run(ops, parts)[place])
    assert torch.equal(torch.cat(pieces), alone)


def test_a_long_decode_divided_among_threads_equals_prefill() -> None:
    page = Paged(heads_of(4, 2, 32), dtype=torch.float16, granules=1)
    whole, again = requests(page, (1000, 1000))
    ops = make_ops(kernels=FASTEST, threads=3)
    [expected] = page.run(ops, [(whole, 0, 1000)])
    page.run(ops, [(again, 0, 999)])
    [last] = page.run(ops, [(again, 999, 1000)])
    assert torch.equal(last, expected[-1:])


def test_a_later_token_that_is_not_a_number_does_not_reach_an_earlier_query() -> None:
    heads = heads_of(3, 1, 16)
    page = Paged(heads, granules=1)
    clean, dirty = requests(page, (40, 40))
    dirty.qkv_TX = clean.qkv_TX.clone()
    dirty.qkv_TX[25:] = torch.nan
    ops = make_ops(kernels=FASTEST)
    [expected], [got] = (page.run(ops, [(sequence, 0, 40)]) for sequence in (clean, dirty))
    assert torch.equal(got[:25], expected[:25])
    assert got[25:].isnan().all()


def test_rows_of_queries_may_lie_apart() -> None:
    page = Paged(heads_of(4, 2, 16), granules=1)
    [sequence] = requests(page, (50,))
    ops = make_ops(kernels=FASTEST)
    step, qkv_TX = page.step([(sequence, 0, 50)])
    apart = torch.full((50, qkv_TX.shape[1] + 7), torch.nan)
    apart[:, : qkv_TX.shape[1]] = qkv_TX
    q_THE = ops.rope_store(apart[:, : qkv_TX.shape[1]], page.heads, page.kv, step)
    expected = ops.attend(q_THE, page.kv, step, 0.25)
    wide = torch.full((50, 5, 16), torch.nan)
    wide[:, :4] = q_THE
    assert torch.equal(ops.attend(wide[:, :4], page.kv, step, 0.25), expected)


def test_sinks_cannot_be_recorded() -> None:
    page = Paged(heads_of(4, 2, 16), granules=1)
    [sequence] = requests(page, (5,))
    ops = make_ops(kernels=FASTEST)
    assert ops.recorder is not None
    with (
        ops.recorder.record(8, 8),
        pytest.raises(RuntimeError, match="attention sinks cannot be recorded"),
    ):
        page.run(ops, [(sequence, 0, 5)], sinks_H=torch.zeros(4))


def test_an_impossible_head_dimension_is_refused() -> None:
    module = extension()
    assert not isinstance(module, str)
    with pytest.raises(ValueError, match="head dimension"):
        module.KvView(0, 0, 16, 1, 7, 0, 0)
