"""The native sampler against the reference: the same tokens, ranks and alternatives, whatever the kernels and the threads."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inference_stack.ops.api import Sampled, SampleInputs, Scored
from inference_stack.ops.cpu.native import Native, extension
from inference_stack.ops.cpu.sampler import CpuSampler
from inference_stack.ops.reference.sampler import sample
from inference_stack.ops.reference.score import score
from tests.ops.parts import sampling
from tests.ops.test_sampler import random_case

MODULE = extension()
pytestmark = pytest.mark.skipif(isinstance(MODULE, str), reason=str(MODULE))
KERNELS = [] if isinstance(MODULE, str) else list(MODULE.kernel_names())
VOCABS = [1, 2, 15, 16, 17, 63, 64, 65, 333, 1025, 5003, 9000]


def make(kernels: str, threads: int = 1) -> CpuSampler:
    """A sampler with threads of its own."""
    assert not isinstance(MODULE, str)
    return CpuSampler(Native(MODULE, threads, kernels))


@pytest.fixture(scope="module")
def samplers() -> dict[str, CpuSampler]:
    """One per kernel set, and the fastest set again with three threads."""
    return {**{name: make(name) for name in KERNELS}, f"{KERNELS[0]}, three threads": make(KERNELS[0], 3)}


@pytest.fixture(scope="module")
def native(samplers: dict[str, CpuSampler]) -> CpuSampler:
    """The fastest kernels on one thread."""
    return samplers[KERNELS[0]]


def assert_same_bits(found: Sampled | Scored, expected: Sampled | Scored) -> None:
    for field in fields(expected):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if a is not None and a.dtype == torch.float32:
            a, b = a.view(torch.int32), b.view(torch.int32)
        assert (a is None and b is None) or torch.equal(a, b), field.name


def assert_agrees(found: Sampled | Scored, expected: Sampled | Scored) -> None:
    """Integers exactly, log-probabilities to 1e-5."""
    for field in fields(expected):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if a is None or b is None:
            assert a is None and b is None
        elif a.dtype == torch.float32:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)
        else:
            assert torch.equal(a, b), field.name


def extreme_case(rows: int, vocab: int, seed: int) -> tuple[Tensor, SampleInputs]:
    """Rows of every filter and temperature over logits with ties and holes."""
    pick = torch.Generator().manual_seed(seed)

    def of(*values: float) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (rows,), generator=pick)]

    logits = torch.randn(rows, vocab, generator=pick) * of(0.01, 1.0, 6.0, 40.0)[:, None]
    logits = torch.where(of(0, 1)[:, None] > 0, (logits * 4).round() / 4, logits)
    holes = torch.rand(rows, vocab, generator=pick) < of(0.0, 0.0, 0.1, 0.99)[:, None]
    inputs = sampling(
        rows, temperature_S=of(0.0, 1e-30, 1e-6, 0.7, 1.0, 1.0, 100.0), top_k_S=of(0, 0, 1, 2, 40, 700, vocab).long(),
        top_p_S=of(1.0, 1.0, 0.0, 1e-6, 0.5, 0.9, 0.99999, 1 - 6e-8), min_p_S=of(0.0, 0.0, 1e-9, 0.05, 1.0),
        seed_S=torch.randint(-(2**63), 2**63 - 1, (rows,), generator=pick), choice_S=of(0, 3).long(),
        position_S=of(0, 900, 70_000).long(), top_S=of(-1, 0, 5).long(),
    )  # fmt: skip
    return logits.masked_fill(holes, -torch.inf), inputs


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 9), vocab=st.sampled_from(VOCABS), seed=st.integers(0, 100_000), extreme=st.booleans())
def test_every_kernel_set_agrees_with_the_reference(
    samplers: dict[str, CpuSampler], rows: int, vocab: int, seed: int, extreme: bool
) -> None:
    logits, inputs = (extreme_case if extreme else random_case)(rows, vocab, seed)
    expected = sample(logits, inputs)
    results = [sampler.sample(logits, inputs) for sampler in samplers.values()]
    assert_agrees(results[0], expected)
    for result in results[1:]:
        assert_same_bits(result, results[0])


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 5), vocab=st.sampled_from(VOCABS), seed=st.integers(0, 10_000), top=st.integers(0, 40))
def test_scores_agree_with_the_reference(
    samplers: dict[str, CpuSampler], rows: int, vocab: int, seed: int, top: int
) -> None:
    logits, _ = extreme_case(rows, vocab, seed)
    tokens = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(seed))
    results = [sampler.score(logits, tokens, top) for sampler in samplers.values()]
    assert_agrees(results[0], score(logits, tokens, top))
    for result in results[1:]:
        assert_same_bits(result, results[0])


@pytest.mark.parametrize("vocab", [7, 4099])
@pytest.mark.parametrize("top_k", [0, 5])
def test_thousands_of_draws_are_the_references(native: CpuSampler, vocab: int, top_k: int) -> None:
    count, flat = 2_000, torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * 0.3
    inputs = sampling(
        count, temperature_S=torch.ones(count), position_S=torch.arange(count), top_k_S=torch.full((count,), top_k)
    )
    logits = flat.expand(count, -1)
    assert torch.equal(native.sample(logits, inputs).tokens_S, sample(logits, inputs).tokens_S)


@pytest.mark.parametrize(
    "changes", [{"top_p_S": 0.9}, {"top_k_S": 2000, "top_p_S": 0.5}, {"min_p_S": 0.02}, {"top_k_S": 50}]
)
def test_large_vocabularies_agree(native: CpuSampler, changes: dict[str, float]) -> None:
    logits = torch.randn(3, 49_152, generator=torch.Generator().manual_seed(3)) * torch.tensor([[0.5], [2.0], [5.0]])
    columns = {name: torch.tensor([value] * 3) for name, value in changes.items()}
    inputs = sampling(3, temperature_S=torch.ones(3), **columns)
    assert torch.equal(native.sample(logits, inputs).tokens_S, sample(logits, inputs).tokens_S)


@pytest.mark.parametrize("top_p", [0.25, 0.5, 0.9, 1 - 6e-8])
def test_equal_logits_are_cut_by_id(native: CpuSampler, top_p: float) -> None:
    count, vocab = 300, 3000
    logits = torch.zeros(1, vocab).expand(count, -1)
    inputs = sampling(count, temperature_S=torch.ones(count), top_p_S=torch.full((count,), top_p))
    tokens = native.sample(logits, inputs).tokens_S
    assert torch.equal(tokens, sample(logits, inputs).tokens_S)
    assert int(tokens.max()) < vocab * top_p + 1


def test_greedy_takes_the_lowest_id_among_equals(native: CpuSampler) -> None:
    logits = torch.full((3, 100_003), -0.0)
    logits[0, [70_001, 100_002, 313]] = 5.0
    logits[1, 5:] = 0.0
    logits[2, 100_002] = 1.0
    assert native.sample(logits, sampling(3)).tokens_S.tolist() == [313, 0, 100_002]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1023, 1040, 1049])
def test_a_broken_row_is_reported_and_harms_no_other(native: CpuSampler, bad: float, place: int) -> None:
    logits = torch.randn(3, 1050)
    inputs = sampling(3, temperature_S=torch.tensor([0.0, 1.0, 1.0]), top_S=torch.full((3,), 4))
    clean = native.sample(logits, inputs).tokens_S
    logits[1, place] = bad
    found = native.sample(logits, inputs)
    assert found.finite_S.tolist() == [True, False, True]
    assert found.tokens_S[[0, 2]].tolist() == clean[[0, 2]].tolist()
    assert_agrees(found, sample(logits, inputs))


@pytest.mark.parametrize("vocab", [17, 200])
def test_all_but_one_token_banned_leaves_that_one(native: CpuSampler, vocab: int) -> None:
    banned = torch.tensor([token for token in range(vocab) if token != 11])
    for temperature, top_p in ((0.0, 1.0), (1.0, 1.0), (100.0, 0.9)):
        inputs = sampling(
            1, temperature_S=torch.tensor([temperature]), top_p_S=torch.tensor([top_p]), banned_token=banned,
            banned_row=torch.zeros(vocab - 1, dtype=torch.int64),
        )  # fmt: skip
        assert native.sample(torch.randn(1, vocab), inputs).tokens_S.tolist() == [11]


def test_all_tokens_banned_gives_the_references_token(native: CpuSampler) -> None:
    inputs = sampling(1, temperature_S=torch.ones(1), allowed_SW=torch.zeros(1, 2, dtype=torch.int32))
    logits = torch.randn(1, 40)
    assert torch.equal(native.sample(logits, inputs).tokens_S, sample(logits, inputs).tokens_S)


def test_no_rows_give_no_tokens(native: CpuSampler) -> None:
    one = sampling(1)
    columns = {f.name: getattr(one, f.name)[:0] for f in fields(one) if isinstance(getattr(one, f.name), Tensor)}
    found = native.sample(torch.zeros(0, 50), replace(one, **columns, max_top=3))
    assert found.tokens_S.shape == found.finite_S.shape == (0,)
    assert found.top_ids_SK is not None and found.top_ids_SK.shape == (0, 3)


def test_rows_and_columns_may_be_strided(native: CpuSampler) -> None:
    wide = torch.randn(4, 700)
    inputs = sampling(4, temperature_S=torch.tensor(0.9).expand(4), seed_S=torch.arange(8)[::2])
    plain = replace(inputs, temperature_S=torch.full((4,), 0.9), seed_S=torch.tensor([0, 2, 4, 6]))
    expected = sample(wide[:, :333].contiguous(), plain).tokens_S
    assert torch.equal(native.sample(wide[:, :333], inputs).tokens_S, expected)
    assert torch.equal(native.sample(wide[:, :333].double(), inputs).tokens_S, expected)


@pytest.mark.parametrize("row, token", [(2, 0), (-1, 0), (0, 40), (1, -1)])
def test_a_pair_outside_the_logits_is_refused(native: CpuSampler, row: int, token: int) -> None:
    inputs = sampling(2, bias_row=torch.tensor([row]), bias_token=torch.tensor([token]), bias_value=torch.ones(1))
    with pytest.raises(IndexError, match="outside"):
        native.sample(torch.zeros(2, 40), inputs)


def test_a_scored_token_outside_the_logits_is_refused(native: CpuSampler) -> None:
    with pytest.raises(IndexError, match="outside"):
        native.score(torch.zeros(2, 40), torch.tensor([3, 40]), 0)


def test_a_call_leaves_nothing_behind_for_the_next(native: CpuSampler) -> None:
    logits, inputs = random_case(6, 999, 5)
    first = native.sample(logits, inputs)
    native.sample(*random_case(9, 5003, 6))
    assert_same_bits(native.sample(logits, inputs), first)
