"""The sampler: against a naive implementation row by row, its distribution, and its independence of the batch."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inference_stack.ops.api import SampleInputs
from inference_stack.ops.facade import BoundOps
from inference_stack.ops.reference.filters import filtered
from inference_stack.ops.reference.sampler import tempered
from tests.ops.parts import sampling


def kept_naively(y: Tensor, top_k: int, top_p: float, min_p: float) -> set[int]:
    """The token set of one row, in plain Python."""
    order = sorted(range(y.shape[0]), key=lambda token: (-float(y[token]), token))
    order = order[:top_k] if top_k else order
    weights = [float(y[token].double().exp()) for token in order]
    whole, before, kept = sum(weights), 0.0, set()
    for token, weight in zip(order, weights, strict=True):
        if not kept or ((top_p >= 1 or before < top_p * whole) and weight >= min_p * weights[0]):
            kept.add(token)
        before += weight
    return kept


def kept_by_filters(y_FV: Tensor, top_k: list[int], top_p: list[float], min_p: list[float]) -> list[set[int]]:
    found: list[set[int]] = [set() for _ in top_k]
    for kept in filtered(y_FV, torch.tensor(top_k), torch.tensor(top_p), torch.tensor(min_p)):
        for row, ids, keep in zip(kept.rows_F.tolist(), kept.ids_FK, kept.keep_FK, strict=True):
            found[row] = set(ids[keep].tolist())
    return found


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    vocab=st.sampled_from([5, 130, 1500, 9000]),
    spread=st.sampled_from([0.01, 1.0, 6.0]),
    rows=st.lists(
        st.tuples(st.sampled_from([0, 1, 2, 50, 1200]), st.sampled_from([1.0, 0.5, 0.95, 1e-6]), st.sampled_from([0.0, 0.1, 1.0])),
        min_size=1, max_size=4,
    ),
)  # fmt: skip
def test_filters_keep_what_a_naive_loop_keeps(
    seed: int, vocab: int, spread: float, rows: list[tuple[int, float, float]]
) -> None:
    logits = torch.randn(len(rows), vocab, generator=torch.Generator().manual_seed(seed)) * spread
    y = tempered((logits * 4).round() / 4, torch.ones(len(rows)))
    top_k, top_p, min_p = (list(column) for column in zip(*rows, strict=True))
    exact_p = torch.tensor(top_p).double().tolist()
    exact_m = torch.tensor(min_p).double().tolist()
    expected = [kept_naively(*row) for row in zip(y, top_k, exact_p, exact_m, strict=True)]
    assert kept_by_filters(y, top_k, top_p, min_p) == expected


def test_the_nucleus_keeps_the_token_that_crosses_p() -> None:
    y = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert kept_by_filters(y - y.max(), [0], [0.6], [0.0]) == [{0, 1}]


def test_top_k_breaks_ties_by_the_lower_id() -> None:
    assert kept_by_filters(torch.zeros(1, 9), [3], [1.0], [0.0]) == [{0, 1, 2}]


def test_greedy_takes_the_lowest_id_among_equals(ops: BoundOps) -> None:
    logits = torch.zeros(2, 100_000)
    logits[0, [70_001, 99_999, 313]] = 5.0
    assert ops.sample(logits, sampling(2)).tokens_S.tolist() == [313, 0]


def draws(ops: BoundOps, logits: Tensor, count: int, **changes: object) -> Tensor:
    """`count` tokens of one distribution, seeds 0 … count-1."""
    columns = {name: value.expand(count) if isinstance(value, Tensor) else value for name, value in changes.items()}
    inputs = sampling(count, **{"temperature_S": torch.ones(count), "position_S": torch.arange(count), **columns})
    return ops.sample(logits.expand(count, -1), inputs).tokens_S


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 5])
def test_draws_follow_the_distribution(ops: BoundOps, temperature: float, top_k: int) -> None:
    count, logits = 6_000, torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0, 1.5, 0.2])
    tokens = draws(ops, logits, count, temperature_S=torch.tensor(temperature), top_k_S=torch.tensor(top_k))
    y = (logits / temperature).double()
    if top_k:
        y[y < y.topk(top_k).values[-1]] = -torch.inf
    expected = y.softmax(0) * count
    seen = torch.bincount(tokens, minlength=8)
    alive = expected > 0
    assert int(seen[~alive].sum()) == 0
    chi_square = ((seen - expected)[alive] ** 2 / expected[alive]).sum()
    assert chi_square < 27.9  # 0.9999 quantile at 7 degrees of freedom


def random_case(rows: int, vocab: int, seed: int) -> tuple[Tensor, SampleInputs]:
    """Rows of every kind: greedy, plain, filtered, penalised, biased, banned."""
    pick = torch.Generator().manual_seed(seed)

    def of(*values: float) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (rows,), generator=pick)]

    def sparse() -> tuple[Tensor, Tensor]:
        size = 5 * rows
        return torch.randint(rows, (size,), generator=pick), torch.randint(vocab, (size,), generator=pick)

    history, bias, banned = sparse(), sparse(), sparse()
    inputs = sampling(
        rows, temperature_S=of(0.0, 0.7, 1.0, 1.5), top_k_S=of(0, 0, 3, 40).long(), top_p_S=of(1.0, 0.9, 0.3),
        min_p_S=of(0.0, 0.0, 0.05), repetition_S=of(1.0, 1.3), presence_S=of(0.0, 0.5), frequency_S=of(0.0, 0.7),
        seed_S=torch.randint(-(2**63), 2**63 - 1, (rows,), generator=pick), choice_S=of(0, 1, 2).long(),
        position_S=of(4, 900, 70_000).long(), top_S=of(-1, 0, 3).long(), history_row=history[0], history_token=history[1],
        history_is_output=torch.rand(5 * rows, generator=pick) < 0.5, bias_row=bias[0], bias_token=bias[1],
        bias_value=torch.randn(5 * rows, generator=pick), banned_row=banned[0], banned_token=banned[1],
        allowed_SW=torch.randint(-(2**31), 2**31, (rows, -(-vocab // 32)), generator=pick).to(torch.int32) if seed % 2 else None,
    )  # fmt: skip
    return torch.randn(rows, vocab, generator=pick) * 3, inputs


def only(inputs: SampleInputs, row: int) -> SampleInputs:
    """The parameters of one row, alone."""
    columns = {}
    for field in fields(inputs):
        value = getattr(inputs, field.name)
        prefix = field.name.split("_")[0]
        if prefix in ("history", "bias", "banned"):
            mine = getattr(inputs, f"{prefix}_row") == row
            columns[field.name] = value[mine] * (0 if field.name.endswith("_row") else 1)
        elif isinstance(value, Tensor):
            columns[field.name] = value[row : row + 1]
    return sampling(1, **columns)


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 9), vocab=st.sampled_from([7, 333, 5003]), seed=st.integers(0, 10_000))
def test_a_row_is_the_same_alone_and_in_any_batch(ops: BoundOps, rows: int, vocab: int, seed: int) -> None:
    logits, inputs = random_case(rows, vocab, seed)
    together = ops.sample(logits, inputs)
    for row in range(rows):
        alone = ops.sample(logits[row : row + 1], only(inputs, row))
        assert alone.tokens_S[0] == together.tokens_S[row]
        if inputs.top_S[row] >= 0:
            width = int(inputs.top_S[row])
            assert alone.logprob_S[0] == together.logprob_S[row]  # type: ignore[index]
            assert alone.rank_S[0] == together.rank_S[row]  # type: ignore[index]
            for name in ("top_ids_SK", "top_logprobs_SK"):
                assert torch.equal(getattr(alone, name)[0, :width], getattr(together, name)[row, :width])


def test_penalties_follow_their_formulas(ops: BoundOps) -> None:
    logits = torch.tensor([[3.0, -1.0, 2.0, 0.5, 2.2]])
    inputs = sampling(
        1, repetition_S=torch.tensor([2.0]), frequency_S=torch.tensor([0.25]), presence_S=torch.tensor([0.5]),
        history_row=torch.zeros(4, dtype=torch.int64), history_token=torch.tensor([0, 0, 0, 2]),
        history_is_output=torch.tensor([True, True, False, False]),
    )  # fmt: skip
    # Token 0: 3 / 2 - 2 * 0.25 - 0.5 = 0.5. Token 2: 2 / 2 = 1, prompt only. Token 4 stays at 2.2.
    assert ops.sample(logits, inputs).tokens_S.item() == 4
    logits[0, 4] = 0.9
    assert ops.sample(logits, inputs).tokens_S.item() == 2
    logits[0, 2], logits[0, 4], logits[0, 3] = 0.2, -5.0, 0.49
    assert ops.sample(logits, inputs).tokens_S.item() == 0


def test_negative_logits_are_multiplied_by_the_repetition_penalty(ops: BoundOps) -> None:
    inputs = sampling(
        1, repetition_S=torch.tensor([3.0]), history_row=torch.tensor([0]), history_token=torch.tensor([0]),
        history_is_output=torch.tensor([False]),
    )  # fmt: skip
    assert ops.sample(torch.tensor([[-1.0, -2.9, -4.0]]), inputs).tokens_S.item() == 1


def test_bans_and_grammar_remove_tokens_and_bias_adds(ops: BoundOps) -> None:
    logits = torch.arange(40.0)[None]
    zero = torch.tensor([0])
    banned = sampling(1, banned_row=zero, banned_token=torch.tensor([39]))
    assert ops.sample(logits, banned).tokens_S.item() == 38
    grammar = sampling(1, allowed_SW=torch.tensor([[-(2**31), 0b101]], dtype=torch.int32))
    assert ops.sample(logits, grammar).tokens_S.item() == 34
    biased = sampling(1, bias_row=zero, bias_token=torch.tensor([2]), bias_value=torch.tensor([100.0]))
    assert ops.sample(logits, biased).tokens_S.item() == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_row_fails_alone(ops: BoundOps, bad: float, temperature: float) -> None:
    logits = torch.randn(3, 50)
    changes = {"temperature_S": torch.full((3,), temperature), "top_k_S": torch.tensor([0, 5, 5])}
    clean = ops.sample(logits, sampling(3, **changes)).tokens_S
    logits[1, 17] = bad
    sampled = ops.sample(logits, sampling(3, **changes))
    assert sampled.finite_S.tolist() == [True, False, True]
    assert sampled.tokens_S[[0, 2]].tolist() == clean[[0, 2]].tolist()
    assert 0 <= int(sampled.tokens_S[1]) < 50


def test_a_tiny_temperature_is_greedy(ops: BoundOps) -> None:
    logits = torch.randn(4, 500)
    inputs = sampling(4, temperature_S=torch.full((4,), 1e-30))
    assert torch.equal(ops.sample(logits, inputs).tokens_S, logits.argmax(1))


def test_logprobs_are_of_the_raw_distribution(ops: BoundOps) -> None:
    logits = torch.randn(2, 60)
    logits[0, 5] = logits[0, 9] = 9.0
    inputs = sampling(
        2, top_S=torch.tensor([3, -1]), bias_row=torch.tensor([0]), bias_token=torch.tensor([9]),
        bias_value=torch.tensor([50.0]),
    )  # fmt: skip
    sampled = ops.sample(logits, inputs)
    raw = logits.double().log_softmax(1)
    assert sampled.tokens_S[0] == 9
    assert sampled.rank_S.tolist() == [2, 0]  # type: ignore[union-attr]
    torch.testing.assert_close(sampled.logprob_S[0].double(), raw[0, 9], rtol=1e-5, atol=1e-5)  # type: ignore[index]
    assert sampled.top_ids_SK[0, :2].tolist() == [5, 9]  # type: ignore[index]
    assert sampled.top_ids_SK[1].tolist() == [-1, -1, -1]  # type: ignore[index]


def test_score_gives_given_tokens_their_raw_logprobs(ops: BoundOps) -> None:
    logits, tokens = torch.randn(4, 33), torch.tensor([0, 5, 32, 7])
    scored = ops.score(logits, tokens, 2)
    raw = logits.double().log_softmax(1)
    torch.testing.assert_close(scored.logprob_S.double(), raw.gather(1, tokens[:, None])[:, 0], rtol=1e-5, atol=1e-5)
    order = raw.argsort(1, descending=True)
    assert scored.rank_S.tolist() == [1 + order[row].tolist().index(int(token)) for row, token in enumerate(tokens)]
    assert torch.equal(scored.top_ids_SK, order[:, :2])
    assert ops.score(logits, tokens, 0).top_ids_SK.shape == (4, 0)
