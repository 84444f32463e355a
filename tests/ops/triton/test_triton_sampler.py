"""The device's sampler and scores against the reference, row by row and in any company."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from inference_stack.ops.api import Sampled, SampleInputs
from inference_stack.ops.reference import sampler as reference
from inference_stack.ops.reference.filters import filtered
from inference_stack.ops.reference.score import score as reference_score
from inference_stack.ops.triton import sampler_filters
from inference_stack.ops.triton.sampler import Sampler
from inference_stack.ops.triton.sampler_filters import find_cuts
from inference_stack.ops.triton.sampler_logits import changes
from inference_stack.ops.triton.score import Score
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace
from tests.ops.parts import sampling

SETTINGS = TritonSettings(dtype=torch.float32)


def workspace() -> Workspace:
    return Workspace(max_tokens=64, max_samples=64)


def sample(logits: Tensor, inputs: SampleInputs) -> Sampled:
    return Sampler(workspace(), SETTINGS)(logits, inputs)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_seeds_choose_the_reference_tokens(rows: int, dtype: torch.dtype) -> None:
    logits = draw(rows, 2051 + 9).to(dtype)[:, :2051]
    heat = torch.arange(rows) % 3 * 0.7
    seeds = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=torch.Generator().manual_seed(5))
    inputs = sampling(rows, temperature_S=heat, seed_S=seeds, position_S=torch.arange(rows) + 70_000)
    found = sample(logits, inputs)
    assert torch.equal(found.tokens_S, reference.sample(logits.float(), inputs).tokens_S)
    assert found.finite_S.dtype == torch.bool and found.finite_S.all()


def test_equal_logits_of_a_wide_vocabulary_give_the_lowest_id() -> None:
    logits = torch.zeros(2, 49152)
    logits[0, [40_001, 49_151, 3133]] = 5.0
    assert sample(logits, sampling(2)).tokens_S.tolist() == [3133, 0]


@pytest.mark.parametrize(
    "limits",
    [(3, 1.0, 0.0), (0, 0.6, 0.0), (0, 1.0, 0.1), (20, 0.8, 0.02), (1, 1e-6, 1.0)],
    ids=["k", "p", "min", "all", "best"],
)
@pytest.mark.parametrize("tied", [False, True])
def test_filters_keep_what_the_reference_keeps(limits: tuple[int, float, float], tied: bool) -> None:
    logits = draw(2, 103, seed=limits[0])
    logits = logits.round() if tied else logits
    k, p, least = limits
    inputs = sampling(
        2, temperature_S=torch.tensor([0.9, 2.5]), top_k_S=torch.full((2,), k), top_p_S=torch.full((2,), p),
        min_p_S=torch.full((2,), least),
    )  # fmt: skip
    assert torch.equal(sample(logits, inputs).tokens_S, reference.sample(logits, inputs).tokens_S)


NEAR = 31.9
"""Tokens farther than this from the best may be kept or not: no noise lifts them to it."""


def filters(rows: int, k: list[int], p: list[float], least: list[float], heat: list[float]) -> SampleInputs:
    """Row r has the r-th of each list, which begins anew at its end."""
    columns = {"top_k_S": k, "top_p_S": p, "min_p_S": least, "temperature_S": heat}
    return sampling(
        rows, **{name: torch.tensor([of[r % len(of)] for r in range(rows)]) for name, of in columns.items()}
    )


def kept(logits: Tensor, inputs: SampleInputs, chunk: int) -> Tensor:
    """bool [S, V]: what the device's cuts keep; all of an unfiltered row."""
    found = find_cuts(logits, inputs, changes(logits, inputs), chunk)
    cut, many = found.cuts[:, :1], found.cuts[:, 1:]
    tie = found.distances == cut
    ranks = tie.cumsum(1)
    last = torch.arange(chunk, logits.shape[1] + chunk, chunk).clamp(max=logits.shape[1]) - 1
    filtered_S = cut[:, 0] >= 0
    assert torch.equal(found.ties.cumsum(1)[filtered_S], ranks[:, last][filtered_S])
    return (found.distances < cut) | (tie & (ranks <= many)) | (cut < 0)


def expected(logits: Tensor, inputs: SampleInputs) -> Tensor:
    """bool [S, V]: what the reference keeps."""
    rows, vocab = logits.shape
    k_S = inputs.top_k_S
    on_S = (inputs.temperature_S > 0) & ((k_S > 0) & (k_S < vocab) | (inputs.top_p_S < 1) | (inputs.min_p_S > 0))
    keep_SV, on = torch.ones(rows, vocab, dtype=torch.bool), on_S.nonzero()[:, 0]
    y_FV = reference.tempered(logits.float()[on], inputs.temperature_S[on])
    for part in filtered(y_FV, k_S[on], inputs.top_p_S[on], inputs.min_p_S[on]):
        none = torch.zeros(part.rows_F.shape[0], vocab, dtype=torch.bool)
        keep_SV[on[part.rows_F]] = none.scatter(1, part.ids_FK, part.keep_FK)
    return keep_SV


def assert_same_cuts(logits: Tensor, inputs: SampleInputs, chunk: int) -> None:
    best = logits.float().amax(1, keepdim=True)
    heat = torch.where(inputs.temperature_S > 0, inputs.temperature_S, 1.0)[:, None]
    near = (best - logits.float()) / heat < NEAR
    assert torch.equal(kept(logits, inputs, chunk) & near, expected(logits, inputs) & near)


@pytest.mark.parametrize(
    ("look", "vocab"),
    [("random", 5), ("tied", 64), *((look, 71) for look in ("random", "tied", "equal", "close", "one", "rising"))],
)
def test_cuts_of_many_chunks_and_of_many_kinds_of_rows(look: str, vocab: int) -> None:
    logits = draw(8, vocab, seed=vocab)
    if look == "tied":
        logits = logits.round()
    elif look == "equal":
        logits = torch.zeros(8, vocab)
    elif look == "close":
        logits *= 0.01
    elif look == "one":
        logits[:, torch.arange(vocab) != vocab - 2] = -torch.inf
    elif look == "rising":  # the best are in the last chunk, the cuts in the first
        logits = (torch.arange(8 * vocab).view(8, vocab) % vocab // 3).half() / 16
    k = [0, 3, vocab - 1, vocab, 2, 0, 1, 0]
    p, least = [1.0, 0.9, 0.77, 1.0, 1.0, 1e-6, 0.999, 0.97], [0.0, 0.0, 0.02, 0.0, 0.3, 0.0, 1.0, 0.0]
    assert_same_cuts(logits, filters(8, k, p, least, [1.0, 0.7, 2.5, 1.0, 1.0, 1.0, 0.1, 0.0]), chunk=32)


@pytest.mark.parametrize("k", [31, 32, 33])
def test_ties_across_chunks_are_kept_by_id(k: int) -> None:
    logits = torch.zeros(2, 64)
    logits[:, [5, 40]] = torch.tensor([-1.0, 1.0])
    inputs = filters(2, [k, 0], [1.0, 0.6], [0.0], [1.0])
    assert_same_cuts(logits, inputs, chunk=32)
    ids = [id for id in range(64) if id not in (5, 40)]
    assert kept(logits, inputs, 32)[0].nonzero()[:, 0].tolist() == sorted([40, *ids[: k - 1]])


def test_programs_of_several_chunks_find_the_same_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, inputs = draw(2, 139).round(), filters(2, [50, 0], [0.9], [0.0], [1.5])
    alone = kept(logits, inputs, 16)
    for programs in (1, 6):
        monkeypatch.setattr(sampler_filters, "PROGRAMS", programs)
        assert torch.equal(kept(logits, inputs, 16), alone)
    assert torch.equal(alone, expected(logits, inputs))


def test_cuts_of_a_wide_vocabulary() -> None:
    logits = draw(3, 5003).to(torch.float16)
    assert_same_cuts(logits, filters(3, [0, 40, 4000], [0.95, 0.9, 0.999], [0.0], [1.0, 2.0, 1.0]), chunk=2048)


def test_chunks_do_not_change_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = draw(5, 71).round()
    inputs = filters(5, [0, 3, 30, 0, 0], [1.0, 0.9, 0.8, 0.5, 1.0], [0.0, 0.02, 0.0, 0.0], [1.0, 2.0, 1.0, 1.0, 0.0])
    whole = sample(logits, inputs).tokens_S
    monkeypatch.setattr("inference_stack.ops.triton.sampler.CHUNK", 32)
    assert torch.equal(sample(logits, inputs).tokens_S, whole)
    assert torch.equal(whole, reference.sample(logits, inputs).tokens_S)


def test_changed_logits_are_cut_as_the_reference_cuts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_stack.ops.triton.sampler.CHUNK", 16)
    rows, vocab = 7, 61
    logits, inputs = draw(rows, vocab), changed(rows, vocab)
    inputs = replace(
        inputs, top_k_S=torch.tensor([0, 5, 0, 9, 0, 0, 60]), top_p_S=torch.linspace(0.5, 1, rows), any_filtered=True
    )
    assert torch.equal(sample(logits, inputs).tokens_S, reference.sample(logits, inputs).tokens_S)


def changed(rows: int, vocab: int) -> SampleInputs:
    """Every row penalised, biased, banned from some tokens and under a grammar."""
    pick = torch.Generator().manual_seed(3)
    row, history = torch.arange(rows).repeat(30), torch.randint(vocab, (30 * rows,), generator=pick)
    return sampling(
        rows, temperature_S=torch.arange(rows) % 2 * 0.8, repetition_S=torch.full((rows,), 1.3),
        presence_S=torch.full((rows,), 0.5), frequency_S=torch.full((rows,), 0.7), history_row=row,
        history_token=history, history_is_output=torch.rand(30 * rows, generator=pick) < 0.5,
        bias_row=torch.arange(rows), bias_token=torch.full((rows,), 7), bias_value=torch.full((rows,), 9.0),
        banned_row=torch.arange(0, rows, 2), banned_token=torch.full((-(-rows // 2),), 7),
        allowed_SW=torch.randint(-(2**31), 2**31, (rows, -(-vocab // 32)), generator=pick).to(torch.int32),
    )  # fmt: skip


def test_changes_of_logits_are_the_references() -> None:
    logits, inputs = draw(17, 61), changed(17, 61)
    assert torch.equal(sample(logits, inputs).tokens_S, reference.sample(logits, inputs).tokens_S)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("heat", [0.0, 1.0])
def test_a_broken_row_fails_alone(bad: float, heat: float) -> None:
    logits = draw(3, 50)
    inputs = sampling(3, temperature_S=torch.full((3,), heat), top_k_S=torch.tensor([0, 5, 5]))
    clean = sample(logits, inputs).tokens_S
    logits[1, 17] = bad
    found = sample(logits, inputs)
    assert found.finite_S.tolist() == [True, False, True]
    assert found.tokens_S[[0, 2]].tolist() == clean[[0, 2]].tolist() and found.tokens_S[1] == 0


def test_rows_alone_and_in_other_company_are_the_same() -> None:
    logits = draw(3, 103)
    columns = {"temperature_S": torch.tensor([0.0, 1.0, 1.0]), "top_k_S": torch.tensor([0, 0, 4])}
    together = sample(logits, sampling(3, **columns)).tokens_S
    for row in range(3):
        mine = {name: column[row : row + 1] for name, column in columns.items()}
        alone = sample(logits[row : row + 1], sampling(1, seed_S=torch.tensor([row]), **mine))
        assert alone.tokens_S[0] == together[row]


def test_no_row_is_no_work() -> None:
    empty = torch.zeros(0)
    inputs = SampleInputs(**{name: empty for name in SampleInputs.__slots__ if name[-2:] == "_S" or ("_" in name[4:]
                             and not name.startswith(("any", "max", "allowed")))})  # fmt: skip
    assert sample(torch.empty(0, 70), inputs).tokens_S.shape == (0,)


@pytest.mark.parametrize("vocab", [5, 1003, 4099])
@pytest.mark.parametrize("top", [0, 1, 20])
def test_scores(vocab: int, top: int) -> None:
    logits = draw(3, vocab).round()
    tokens = torch.tensor([0, vocab - 1, vocab // 2])
    found, expected = Score(workspace(), SETTINGS)(logits, tokens, top), reference_score(logits, tokens, top)
    assert torch.equal(found.rank_S, expected.rank_S) and torch.equal(found.top_ids_SK, expected.top_ids_SK)
    torch.testing.assert_close(found.logprob_S, expected.logprob_S, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.top_logprobs_SK, expected.top_logprobs_SK, rtol=1e-5, atol=1e-5)


def test_logprobs_of_rows_that_ask() -> None:
    logits, inputs = draw(3, 70), sampling(3, top_S=torch.tensor([2, -1, 0]))
    found, expected = sample(logits, inputs), reference.sample(logits, inputs)
    assert torch.equal(found.rank_S, expected.rank_S)  # type: ignore[arg-type]
    assert torch.equal(found.top_ids_SK, expected.top_ids_SK)  # type: ignore[arg-type]
    torch.testing.assert_close(found.logprob_S, expected.logprob_S, equal_nan=True, rtol=1e-5, atol=1e-5)
