"""Requests outlive workers: what was lost goes on with everything it had emitted. One node."""

from dataclasses import replace

import pytest

from inference_stack.core.errors import ErrorInfo, InferenceError
from inference_stack.core.request import FinishReason, Qos
from inference_stack.core.step import TokenLogprob
from tests.dispatch.world import READY, House, house, request


def test_a_lost_request_goes_on_with_what_it_emitted() -> None:
    h = house()
    h.submit(request())
    (first,) = h.requests()
    h.emit(first, 3, 4)
    h.die(first)
    (second,) = h.requests()
    assert second.continuation.emitted == (3, 4)
    assert second.attempt > first.attempt
    h.emit(first, 9)  # a ghost of the first attempt
    h.emit(second, 5, finish=FinishReason.STOP)
    assert (h.tokens("r"), h.last("r").finish) == ([3, 4, 5], FinishReason.STOP)
    assert h.moved == [1]


def test_what_was_told_once_is_not_told_again() -> None:
    entry = (TokenLogprob(token=2, logprob=-1.0, rank=1),)
    h = house()
    h.submit(request())
    (first,) = h.requests()
    h.emit(first, 3, cached_tokens=0, queue_seconds=0.5, prompt_logprobs=entry)
    h.die(first)
    (second,) = h.requests()
    assert second.continuation.params.prompt_logprobs is None
    h.emit(second, 4, cached_tokens=2, queue_seconds=0.0, finish=FinishReason.LENGTH)
    assert [d.cached_tokens for d in h.news["r"] if d.cached_tokens is not None] == [0]
    assert [d.queue_seconds for d in h.news["r"] if d.queue_seconds is not None] == [0.5]


def test_prompt_logprobs_that_were_lost_are_asked_again() -> None:
    h = house()
    h.submit(request())
    (first,) = h.requests()
    h.die(first)
    (second,) = h.requests()
    assert second.continuation.params.prompt_logprobs == 0


def die_together(h: House, times: int, *names: str) -> None:
    """`names` are dispatched and lost without progress, `times` times."""
    for name in names:
        h.submit(request(name))
    for _ in range(times):
        requests = h.requests()
        assert len(requests) == len(names)
        h.die(*requests)


def test_suspects_are_tried_one_at_a_time() -> None:
    h = house()
    die_together(h, 2, "a", "b")
    (first,) = h.requests()
    assert first.id == "a" and not first.isolated
    h.submit(request("innocent"))
    assert not h.requests()
    h.emit(first, 1)
    (second,) = h.requests()
    assert second.id == "b"
    h.emit(second, 1)
    (third,) = h.requests()
    assert third.id == "innocent"


def test_after_three_deaths_a_suspect_runs_alone() -> None:
    h = house()
    die_together(h, 2, "a", "b")
    (first,) = h.requests()
    h.emit(first, 1)
    (second,) = h.requests()
    h.die(first, second)
    (alone,) = h.requests()
    assert alone.id == "b" and alone.isolated
    h.emit(alone, 1)
    (other,) = h.requests()
    assert other.id == "a" and not other.isolated


def test_a_suspect_that_must_be_alone_waits_until_its_node_is_empty() -> None:
    h = house()
    die_together(h, 2, "a", "b")
    (first,) = h.requests()
    h.emit(first, 1)
    (_,) = h.requests()
    h.dispatcher.lost("n", ["b"], "killed by itself", True)
    assert not h.requests()
    h.submit(request("innocent"))
    assert not h.requests()
    h.emit(first, 2, finish=FinishReason.STOP)
    (alone,) = h.requests()
    assert alone.id == "b" and alone.isolated


def test_a_request_acquitted_alone_may_die_again() -> None:
    h = house()
    h.submit(request())
    for _ in range(3):
        (attempt,) = h.requests()
        h.die(attempt)
    (alone,) = h.requests()
    assert alone.isolated
    h.emit(alone, 1)
    h.die(alone)
    (attempt,) = h.requests()
    assert not attempt.isolated
    h.emit(attempt, 2, finish=FinishReason.STOP)
    assert h.tokens("r") == [1, 2]


def test_a_request_that_kills_a_worker_alone_is_given_up() -> None:
    h = house()
    h.submit(request())
    for _ in range(4):
        (attempt,) = h.requests()
        h.die(attempt)
    error = h.last("r").error
    assert error is not None and error.code == "worker_crashed"
    assert h.dispatcher.idle


def test_a_request_that_makes_progress_survives_any_number_of_deaths() -> None:
    h = house()
    h.submit(request())
    for token in range(8):
        (attempt,) = h.requests()
        h.emit(attempt, token)
        h.die(attempt)
    (attempt,) = h.requests()
    h.emit(attempt, 8, finish=FinishReason.STOP)
    assert h.tokens("r") == list(range(9))


def test_requests_that_never_reached_a_worker_are_not_suspects() -> None:
    h = house()
    h.submit(request())
    for _ in range(5):
        (attempt,) = h.requests()
        h.die(attempt, present=False)
    (attempt,) = h.requests()
    assert not attempt.isolated


def test_abort_reaches_the_engine_once_and_ends_the_stream() -> None:
    h = house()
    flight = h.submit(request())
    flight.abort()
    flight.abort()
    assert h.stopped == [("n", "r")]
    assert h.last("r").finish is FinishReason.ABORT
    assert h.dispatcher.idle


def test_a_full_queue_is_refused_with_a_prediction() -> None:
    h = house(max_queue=2)
    for number in range(6):
        h.dispatcher.admit("m", 1)
        h.submit(request(str(number)))
    with pytest.raises(InferenceError) as refusal:
        h.dispatcher.admit("m", 1)
    info = refusal.value.info
    assert info.status == 429 and info.retry_after is not None and 1 <= info.retry_after <= 60


def test_unknown_models_are_not_found() -> None:
    with pytest.raises(InferenceError) as refusal:
        house().dispatcher.admit("other", 1)
    assert refusal.value.info.status == 404


def test_a_deadline_passes_while_no_worker_is_ready() -> None:
    h = house()
    h.dispatcher.state("n", replace(READY, ready=False, models=()))
    h.submit(request(qos=Qos(deadline=h.now + 1)))
    h.dispatcher.tick()
    assert not h.news["r"]
    h.now += 2
    h.dispatcher.tick()
    error = h.last("r").error
    assert error is not None and error.code == "deadline_exceeded"


def test_a_node_that_gave_up_fails_what_waits() -> None:
    h = house()
    h.submit(request())
    (first,) = h.requests()
    h.dispatcher.state("n", replace(READY, ready=False, models=(), error=ErrorInfo(message="broken", status=503)))
    h.dispatcher.lost("n", [first.id], "gave up", True)
    h.dispatcher.tick()
    error = h.last("r").error
    assert error is not None and error.status == 503
    with pytest.raises(InferenceError):
        h.dispatcher.admit("m", 1)
