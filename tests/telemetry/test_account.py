"""An account observes what its clock says and ends once."""

from __future__ import annotations

import logging

import pytest

from inference_stack.core.step import TokenDelta
from inference_stack.telemetry.account import Account
from inference_stack.telemetry.metrics import Metrics


class SetClock:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time


class Case:
    """An account on a set clock."""

    def __init__(self) -> None:
        self.metrics, self.clock = Metrics(), SetClock()
        log = logging.getLogger("tests.telemetry")
        self.account = Account(
            self.metrics,
            self.clock,
            log,
            model="m",
            request_id="r",
            completion_id="c-0",
            prompt_tokens=7,
            arrival=100.0,
        )

    def at(self, time: float, tokens: int = 0, **fields: float) -> None:
        self.clock.time = time
        self.account.news(TokenDelta(request_id="c-0", tokens=(1,) * tokens, **fields), tokens)  # type: ignore[arg-type]

    def total(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"inference_stack_{name}", {"model": "m"})


def test_times_are_split_at_the_first_schedule_and_the_first_token() -> None:
    case = Case()
    case.at(103.0, 1, cached_tokens=4, queue_seconds=1.0)
    case.at(104.0, 1)
    case.clock.time = 106.0
    case.account.close("stop")
    assert case.total("queue_seconds_sum") == 1.0
    assert case.total("prefill_seconds_sum") == 2.0
    assert case.total("time_to_first_token_seconds_sum") == 3.0
    assert case.total("inter_token_latency_seconds_sum") == 1.0
    assert case.total("decode_seconds_sum") == 1.0
    assert case.total("request_seconds_sum") == 6.0


def test_queueing_is_counted_once() -> None:
    case = Case()
    case.at(103.0, 1, queue_seconds=1.0)
    case.at(104.0, 1)
    assert case.total("queue_seconds_count") == case.total("prefill_seconds_count") == 1


def test_without_word_of_the_queue_no_split_is_made_up() -> None:
    case = Case()
    case.at(103.0, 1)
    assert case.total("time_to_first_token_seconds_sum") == 3.0
    assert case.total("queue_seconds_count") == case.total("prefill_seconds_count") == 0


def test_tokens_that_come_together_share_their_gap() -> None:
    case = Case()
    case.at(101.0, 1)
    case.at(103.0, 4)
    assert case.total("inter_token_latency_seconds_count") == 4
    assert case.total("inter_token_latency_seconds_sum") == 2.0
    assert case.total("generation_tokens_total") == 5


def test_prompt_tokens_count_once() -> None:
    case = Case()
    case.at(101.0, 1)
    case.at(102.0, 1)
    assert case.total("prompt_tokens_total") == 7


def test_an_account_closes_once() -> None:
    case = Case()
    assert case.total("requests_in_flight") == 1
    case.account.close("stop")
    case.account.close("abort")
    assert case.total("requests_in_flight") == 0
    assert case.metrics.registry.get_sample_value(
        "inference_stack_completions_total", {"model": "m", "finish_reason": "stop"}
    )


def test_an_error_is_counted_by_its_code(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    case = Case()
    case.at(101.0, 1)
    case.at(102.0, 1, attempt=2)
    case.account.close("error", "deadline_exceeded")
    labels = {"model": "m", "code": "deadline_exceeded"}
    assert case.metrics.registry.get_sample_value("inference_stack_errors_total", labels) == 1
    (fields,) = [record.fields for record in caplog.records]  # type: ignore[attr-defined]
    assert (fields["error"], fields["attempts"], fields["completion"]) == ("deadline_exceeded", 2, "c-0")
