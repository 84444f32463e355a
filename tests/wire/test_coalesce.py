"""Joined reports say what the single ones said one after another."""

from collections import defaultdict
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from inference_stack.core.request import FinishReason
from inference_stack.core.stats import InstanceStats
from inference_stack.core.step import TokenDelta
from inference_stack.wire.coalesce import coalesce
from inference_stack.wire.messages import StepReport
from tests.wire import strategies

TEXT = ("tokens", "logprobs")
ONCE = ("prompt_logprobs", "cached_tokens", "queue_seconds")


def told(reports: list[StepReport]) -> dict[tuple[str, int], list[Any]]:
    """What a receiver knows of each attempt after these: per life of it, its tokens, its one-off news and its end."""
    known: dict[tuple[str, int], list[Any]] = defaultdict(lambda: [{}])
    for delta in (delta for report in reports for delta in report.deltas):
        life = known[delta.request_id, delta.attempt][-1]
        for name in TEXT:
            life[name] = life.get(name, ()) + getattr(delta, name)
        for name in ONCE:
            if getattr(delta, name) is not None:
                life.setdefault(name, getattr(delta, name))
        if delta.finish is not None:
            life["end"] = delta.finish, delta.error
            known[delta.request_id, delta.attempt].append({})
    return {name: [life for life in lives if life] for name, lives in known.items()}


@settings(max_examples=35)
@given(st.lists(strategies.reports, min_size=1, max_size=4))
def test_a_receiver_knows_the_same(reports: list[StepReport]) -> None:
    assert told([coalesce(reports)]) == told(reports)


@settings(max_examples=35)
@given(st.lists(strategies.reports, min_size=1, max_size=4))
def test_reports_themselves_are_left_alone(reports: list[StepReport]) -> None:
    before = repr(reports)
    coalesce(reports)
    assert repr(reports) == before


@settings(max_examples=35)
@given(st.lists(strategies.reports, min_size=2, max_size=4))
def test_of_statistics_the_latest_of_each_model_count(reports: list[StepReport]) -> None:
    latest: dict[str, InstanceStats] = {stats.model: stats for report in reports for stats in report.stats}
    assert {stats.model: stats for stats in coalesce(reports).stats} == latest


def test_the_oldest_emission_counts() -> None:
    reports = [StepReport(deltas=(), at=at) for at in (0.0, 7.0, 5.0, 9.0)]
    assert coalesce(reports).at == 5.0


def test_each_attempt_has_one_delta() -> None:
    reports = [StepReport(deltas=(TokenDelta("a", 0, (n,)), TokenDelta("b", 0, (n,)))) for n in range(3)]
    joined = (TokenDelta("a", 0, (0, 1, 2)), TokenDelta("b", 0, (0, 1, 2)))
    assert coalesce(reports).deltas == joined


def test_nothing_is_joined_to_an_end() -> None:
    last = TokenDelta("a", 0, (1,), finish=FinishReason.STOP)
    reports = [StepReport(deltas=(last,)), StepReport(deltas=(TokenDelta("a", 0, (2,)),))]
    assert coalesce(reports).deltas == (last, TokenDelta("a", 0, (2,)))
