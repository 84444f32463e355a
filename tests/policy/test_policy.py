"""The pure decisions: order, budget, step-time fit, admission."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_stack.core.request import Continuation, Qos, Request, SamplingParams
from inference_stack.core.stats import StepTimeModel
from inference_stack.policy.admission import DrainRate, admit, retry_after
from inference_stack.policy.budget import MIN_CHUNK, StepBudget
from inference_stack.policy.ordering import Key, PriorityFcfs
from inference_stack.policy.step_time import StepTimeFit

TRUE = StepTimeModel(base=0.004, per_token=2e-5, per_row=3e-5, per_context=1e-8)


def request(priority: int = 0, arrival: float = 0.0) -> Request:
    continuation = Continuation(prompt=(1,), params=SamplingParams(), seed=0)
    return Request(id="r", model="m", continuation=continuation, qos=Qos(priority=priority), arrival=arrival)


@dataclass
class Candidate:
    request: Request
    recompute_tokens: int = 1
    rank: tuple[Key, int] = ((), 0)


def test_higher_priority_goes_first_then_first_come() -> None:
    requests = [request(0, 1.0), request(-100, 0.0), request(100, 9.0), request(0, 0.5)]
    policy = PriorityFcfs()
    ordered = sorted(requests, key=lambda r: policy.key(r, 0.0))
    assert [(r.qos.priority, r.arrival) for r in ordered] == [(100, 9.0), (0, 0.5), (0, 1.0), (-100, 0.0)]


def test_the_victim_is_least_important_then_latest_then_cheapest() -> None:
    policy = PriorityFcfs()
    low, late = Candidate(request(-100, 0.0)), Candidate(request(0, 9.0))
    assert policy.victim([late, low]) is low
    assert policy.victim([Candidate(request(0, 1.0)), late]) is late
    cheap = replace(late, recompute_tokens=0)
    assert policy.victim([late, cheap]) is cheap
    assert policy.victim([]) is None


def test_only_a_higher_priority_displaces() -> None:
    policy = PriorityFcfs()
    assert policy.displaces(request(100), request(0))
    assert not policy.displaces(request(0, 0.0), request(0, 1.0))


def test_without_a_target_the_token_budget_decides() -> None:
    budget = StepBudget(100)
    budget.charge(30, 30, 9999)
    assert budget.chunk(0, 500) == 70
    budget.charge_chunk(0, 70)
    assert budget.chunk(0, 500) == 0


@given(st.integers(0, 60), st.integers(0, 4000), st.integers(1, 3000), st.floats(0.001, 0.1))
def test_a_chunk_keeps_the_predicted_step_within_the_target_or_is_the_least(
    rows: int, start: int, want: int, target: float
) -> None:
    budget = StepBudget(4096, target, TRUE)
    budget.charge(rows, rows, rows * 100)
    chunk = budget.chunk(start, want)
    assert min(want, MIN_CHUNK) <= chunk <= want
    predicted = TRUE.predict(rows + chunk, rows + 1, rows * 100 + start + chunk)
    assert predicted <= target + 1e-9 or chunk == min(want, MIN_CHUNK)


def test_prompts_progress_under_a_hopeless_target_but_only_once_per_step() -> None:
    budget = StepBudget(512, 1e-6, TRUE)
    assert budget.chunk(0, 300) == MIN_CHUNK
    budget.charge_chunk(0, MIN_CHUNK)
    assert budget.chunk(0, 300) == 0


def observe(fit: StepTimeFit, steps: int, seed: int, noise: float = 0.02, outliers: float = 0.0) -> None:
    rng = random.Random(seed)
    for _ in range(steps):
        rows = rng.randint(1, 64)
        tokens = rows + rng.choice((0, 0, 128, 400))
        context = rows * rng.randint(50, 4000)
        seconds = TRUE.predict(tokens, rows, context) * (1 + rng.uniform(-noise, noise))
        fit.observe(tokens, rows, context, seconds * (50.0 if rng.random() < outliers else 1.0))


def error_at(fit: StepTimeFit, tokens: int, rows: int, context: int) -> float:
    return abs(fit.model.predict(tokens, rows, context) / TRUE.predict(tokens, rows, context) - 1)


@pytest.mark.parametrize("size", [(1, 1, 100), (32, 32, 32_000), (432, 32, 60_000)])
def test_the_fit_finds_the_true_step_time(size: tuple[int, int, int]) -> None:
    fit = StepTimeFit()
    observe(fit, 600, seed=1)
    assert error_at(fit, *size) < 0.05


def test_rare_outliers_do_not_spoil_the_fit() -> None:
    fit = StepTimeFit()
    observe(fit, 200, seed=1)
    observe(fit, 800, seed=2, outliers=0.02)
    assert error_at(fit, 432, 32, 60_000) < 0.25


def test_the_fit_follows_a_machine_that_became_slower() -> None:
    fit = StepTimeFit(StepTimeModel(base=TRUE.base / 3, per_token=TRUE.per_token / 3))
    observe(fit, 200, seed=3)
    for _ in range(1500):
        fit.observe(64, 32, 10_000, 0.050)
    assert abs(fit.model.predict(64, 32, 10_000) / 0.050 - 1) < 0.1


def test_coefficients_are_never_negative_and_nonsense_is_ignored() -> None:
    fit = StepTimeFit()
    fit.observe(10, 1, 10, 0.0)
    fit.observe(10, 1, 10, float("nan"))
    assert fit.observations == 0
    for tokens in (400, 300, 200, 100):
        fit.observe(tokens, 1, tokens, 1.0 / tokens)
    model = fit.model
    assert min(model.base, model.per_token, model.per_row, model.per_context) >= 0.0


def test_admission_fills_running_and_queue_then_refuses() -> None:
    assert admit(outstanding=9, max_running=4, max_queue=6, rate=1.0).admitted
    refused = admit(outstanding=10, max_running=4, max_queue=6, rate=2.0)
    assert not refused.admitted and refused.retry_after == 3.0


def test_choices_of_one_request_are_admitted_together_or_not_at_all() -> None:
    assert not admit(outstanding=8, max_running=4, max_queue=6, rate=1.0, count=3).admitted


@given(st.integers(0, 10_000), st.floats(0.0, 1000.0))
def test_retry_after_stays_between_a_second_and_a_minute(queued: int, rate: float) -> None:
    assert 1.0 <= retry_after(queued, rate) <= 60.0


def test_the_drain_rate_follows_recent_completions() -> None:
    rate = DrainRate()
    for tick in range(100):
        rate.finished(tick * 0.5)
    assert rate.per_second(49.5) == pytest.approx(2.0, rel=0.05)
    for tick in range(400):
        rate.finished(49.5 + tick * 0.1)
    assert rate.per_second(89.4) == pytest.approx(10.0, rel=0.1)


def test_an_unknown_drain_rate_means_the_longest_wait() -> None:
    assert DrainRate().per_second(1.0) == 0.0
    assert retry_after(5, 0.0) == 60.0
