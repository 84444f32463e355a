"""When a newer attempt may adopt what an older one has computed, and how much is remembered for how long."""

from dataclasses import replace
from typing import Any

import pytest

from inference_stack.core.errors import ErrorInfo
from inference_stack.core.request import FinishReason
from inference_stack.core.step import TokenDelta, TokenLogprob
from inference_stack.node.orphans import Orphans, record_bytes
from inference_stack.node.runs import Retired, Run
from tests.node.world import request

AnyRun = Run[Any, Any]


def run(name: str = "a", emitted: tuple[int, ...] = (), tokens: tuple[int, ...] = (), **changes: Any) -> AnyRun:
    made: AnyRun = Run(request(name, emitted=emitted, **changes), 0, None, ("g", "1"), 0.0)
    made.record(TokenDelta(name, tokens=tokens))
    return made


def scored(*tokens: int) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(token=token, logprob=-float(token), rank=1, top=((token, -1.0),)) for token in tokens)


@pytest.mark.parametrize("emitted", [(), (1,), (1, 2), (1, 2, 3, 4)])
def test_a_prefix_of_what_is_known_is_adopted_and_the_rest_replayed(emitted: tuple[int, ...]) -> None:
    older = run(emitted=(1, 2), tokens=(3, 4))
    newer = request("a", attempt=1, emitted=emitted)
    assert older.may_adopt(newer)
    assert older.replay(newer).tokens == (1, 2, 3, 4)[len(emitted) :]


@pytest.mark.parametrize("emitted", [(9,), (1, 2, 3, 5), (1, 2, 3, 4, 5)])
def test_tokens_that_are_not_known_here_are_not_adopted(emitted: tuple[int, ...]) -> None:
    assert not run(emitted=(1, 2), tokens=(3, 4)).may_adopt(request("a", attempt=1, emitted=emitted))


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": (1, 2)},
        {"seed": 6},
        {"choice": 1},
        {"temperature": 0.5},
        {"model": "other"},
        {"cache_salt": "tenant"},
        {"isolated": True},
        {"prompt_logprobs": 1},
    ],
)
def test_another_request_is_not_adopted(change: dict[str, Any]) -> None:
    assert run(tokens=(3,)).may_adopt(request("a", attempt=1))
    assert not run(tokens=(3,)).may_adopt(request("a", attempt=1, **change))


def test_what_ended_in_an_error_is_tried_again() -> None:
    older = run(tokens=(3,))
    older.record(TokenDelta("a", finish=FinishReason.ERROR, error=ErrorInfo(message="late")))
    assert not older.may_adopt(request("a", attempt=1))


def test_logprobs_are_replayed_beside_their_tokens() -> None:
    older = run(emitted=(1,), logprobs=1)
    older.record(TokenDelta("a", tokens=(2, 3), logprobs=scored(2, 3)))
    replay = older.replay(request("a", attempt=1, emitted=(1, 2), logprobs=1))
    assert (replay.tokens, replay.logprobs) == ((3,), scored(3))


def test_logprobs_from_before_this_attempt_are_not_known_here() -> None:
    older = run(emitted=(1,), logprobs=1)
    assert not older.may_adopt(request("a", attempt=1, logprobs=1))
    assert older.may_adopt(request("a", attempt=1, emitted=(1,), logprobs=1))


def test_prompt_logprobs_are_told_again_only_to_those_who_ask() -> None:
    older = run(prompt_logprobs=1)
    older.record(TokenDelta("a", prompt_logprobs=scored(2, 3)))
    asks, knows = request("a", attempt=1, prompt_logprobs=1), request("a", attempt=1)
    assert older.may_adopt(asks) and older.replay(asks).prompt_logprobs == scored(2, 3)
    assert older.may_adopt(knows) and older.replay(knows).prompt_logprobs is None


def test_attempts_of_the_departed_are_remembered_for_a_while() -> None:
    retired = Retired(seconds=60)
    retired.add("a", 3, now=0)
    retired.add("b", 1, now=59)
    assert (retired.attempt("a"), retired.attempt("b"), retired.attempt("c")) == (3, 1, -1)
    retired.expire(61)
    assert (retired.attempt("a"), retired.attempt("b")) == (-1, 1)


def test_the_departed_that_are_remembered_are_so_many_at_most() -> None:
    retired = Retired(most=2)
    for name in ("a", "b", "a", "c"):
        retired.add(name, 1, now=0)
    assert [retired.attempt(name) for name in "abc"] == [1, -1, 1]


def test_a_first_attempt_that_left_is_not_remembered() -> None:
    retired = Retired()
    retired.add("a", 0, now=0)
    assert len(retired) == 0


def test_orphans_are_kept_for_their_time() -> None:
    orphans = Orphans(seconds=30)
    orphans.add(run("a"), now=0)
    orphans.add(run("b"), now=10)
    assert orphans.overdue(29) == []
    assert [one.id for one in orphans.overdue(30)] == ["a"]
    orphans.remove("a")
    assert orphans.overdue(30) == [] and len(orphans) == 1


def test_the_oldest_orphans_make_room() -> None:
    size = record_bytes(run("a", tokens=(1,) * 1000))
    orphans = Orphans(seconds=30, most_bytes=2 * size)
    for name in "abc":
        orphans.add(run(name, tokens=(1,) * 1000), now=0)
    assert [one.id for one in orphans.overdue(1)] == ["a"]


def test_logprobs_count() -> None:
    plain, heavy = run(tokens=(1,)), run(tokens=(1,))
    heavy.logprobs = list(scored(1))
    assert record_bytes(heavy) > record_bytes(plain)
    assert record_bytes(replace(heavy, prompt_logprobs=scored(1, 2))) > record_bytes(heavy)
