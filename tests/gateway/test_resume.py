"""Streams that break off and go on through another gateway: cut at every event, they add up to the undisturbed answer."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from inference_stack.core.errors import queue_full
from inference_stack.gateway.resume import Mark, ResumeTokens
from tests.gateway.house import TEXTS, House, chat_body, make_house, text_body
from tests.gateway.resuming import (
    CHAT,
    SECRET,
    TEXT,
    Event,
    assert_same,
    constants,
    encoded,
    kept,
    parsed,
    post,
    sharing,
    streamed,
    told,
)

USAGE = {"stream_options": {"include_usage": True}}
KINDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "greedy": (CHAT, chat_body(temperature=0), 1),
    "seeded": (CHAT, chat_body(seed=1), 1),
    "usage": (CHAT, chat_body(**USAGE), 1),
    "two choices": (CHAT, chat_body(n=2, **USAGE), 2),
    "logprobs": (CHAT, chat_body(seed=1, logprobs=True, top_logprobs=2), 1),
    "a stop string": (CHAT, chat_body(stop=["the lazy cat", "dog, and"], **USAGE), 1),
    "a stop string that never comes": (CHAT, chat_body(stop=["until noon. And"], logprobs=True), 1),
    "token ids": (CHAT, chat_body(seed=1, return_token_ids=True, **USAGE), 1),
    "length": (CHAT, chat_body(n=2, max_tokens=5, **USAGE), 2),
    "text": (TEXT, text_body(seed=2), 1),
    "echo": (TEXT, text_body(echo=True, return_token_ids=True, **USAGE), 1),
    "prompt logprobs": (TEXT, text_body(echo=True, logprobs=2, n=2, max_tokens=9), 2),
    "prompts": (TEXT, text_body(prompt=["One two", "Three"], logprobs=1, **USAGE), 2),
    "nothing but the prompt": (TEXT, text_body(echo=True, logprobs=1, max_tokens=0, **USAGE), 1),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 50), (3, 2)], ids=["alike", "at once", "otherwise"])
async def test_cut_at_every_event(kind: str, before: int, after: int) -> None:
    path, fields, choices = KINDS[kind]
    body = encoded(fields)
    here, there = sharing(), sharing()
    here.script.delta_tokens, there.script.delta_tokens = before, after
    there.script.cached = 7  # what the second gateway's engine finds in its cache is not what the first one told
    undisturbed = await streamed(here, path, body)
    assert undisturbed[-1].data == "[DONE]"
    for cut in range(1, len(undisturbed) + 1):
        had = kept(undisturbed[:cut])
        rest = await streamed(there, path, body, had[-1].id) if had else await streamed(here, path, body)
        assert_same([*had, *rest], undisturbed, choices)


@pytest.mark.parametrize("kind", KINDS)
async def test_cut_after_every_write(kind: str) -> None:
    path, fields, choices = KINDS[kind]
    body = encoded(fields)
    houses = itertools.cycle([sharing(), sharing()])
    undisturbed = await streamed(next(houses), path, body)
    found: list[Event] = []
    while not found or found[-1].data != "[DONE]":
        events = await streamed(next(houses), path, body, found[-1].id if found else None)
        first = next((index for index, event in enumerate(events) if event.id is not None), len(events))
        found += events[: first + 1] if first + 1 < len(events) - 1 else events
    assert_same(found, undisturbed, choices)


async def cut(house: House, body: bytes, tokens: int, path: str = CHAT) -> list[Event]:
    """A stream of which the client has that many events with text."""
    events = await streamed(house, path, body)
    return kept(events[: tokens + 1])


async def test_a_drawn_seed_is_kept() -> None:
    here, there = sharing(), sharing()
    fields = chat_body()
    del fields["seed"]
    had = await cut(here, encoded(fields), 2)
    rest = await streamed(there, CHAT, encoded(fields), had[-1].id)
    assert told([*had, *rest], 0).text in TEXTS
    assert there.dispatch.requests[0].continuation.seed == here.dispatch.requests[0].continuation.seed


async def test_the_same_requests_are_made_again_as_a_later_attempt() -> None:
    here, there = sharing(), sharing()
    body = encoded(chat_body(n=2))
    had = await cut(here, body, 3)
    await streamed(there, CHAT, body, had[-1].id)
    for first, again in zip(here.dispatch.requests, there.dispatch.requests, strict=True):
        assert (again.id, again.continuation) == (first.id, first.continuation)
        assert (first.attempt, again.attempt & 0xFFFF) == (0, 0)
        assert again.attempt >= 1 << 16


async def test_every_return_is_a_later_attempt() -> None:
    house, body = sharing(), encoded(chat_body())
    had = await cut(house, body, 2)
    again = await streamed(house, CHAT, body, had[-1].id)
    await streamed(house, CHAT, body, kept(again[:2])[-1].id)
    attempts = [request.attempt for request in house.dispatch.requests]
    assert attempts == sorted(set(attempts))


async def test_the_node_that_computed_it_is_asked_first() -> None:
    here, there = sharing(), sharing()
    body = encoded(chat_body())
    had = await cut(here, body, 2)
    await streamed(there, CHAT, body, had[-1].id)
    assert there.dispatch.holders == [b"node"]


async def test_a_choice_that_ended_is_not_computed_again() -> None:
    here, there = sharing(), sharing()
    body = encoded(chat_body(n=2, max_tokens=30))
    events = await streamed(here, CHAT, body)
    ends = [index for index, event in enumerate(events) if event.data != "[DONE]" and told([event], 0).finish]
    after = next(index for index, event in enumerate(events) if index >= ends[0] and event.id is not None)
    had = kept(events[: after + 1])
    assert not told(had, 1).finish
    rest = await streamed(there, CHAT, body, had[-1].id)
    assert [request.continuation.choice for request in there.dispatch.requests] == [1]
    assert_same([*had, *rest], events, 2)


async def test_a_finished_stream_only_ends() -> None:
    here, there = sharing(), sharing()
    body = encoded(chat_body(**USAGE))
    events = await streamed(here, CHAT, body)
    assert [event.data for event in await streamed(there, CHAT, body, events[-2].id)] == ["[DONE]"]
    assert not there.dispatch.requests


async def test_other_tokens_than_before_are_an_error_and_nothing_else() -> None:
    here, there = sharing(), sharing()
    body = encoded(chat_body())
    had = await cut(here, body, 4)
    there.script.answers[0][1] += 1
    response = await post(there, CHAT, body, had[-1].id)
    assert response.status_code == 409
    assert response.json()["error"]["code"] == "resume_diverged"
    assert there.dispatch.settled()
    assert 'errors_total{code="resume_diverged",model="tiny"} 1.0' in there.metrics.render().decode()


def sealed(had: list[Event], body: bytes, *answers: list[int]) -> str:
    """An id for a client that has these tokens of each choice."""
    tokens = ResumeTokens(SECRET)
    digests = tokens.body_digest(CHAT, body), tokens.principal_digest("", "")
    identity = tokens.open(str(had[-1].id), *digests, had[0].data["created"]).identity
    marks = [Mark() for _ in answers]
    for mark, answer in zip(marks, answers, strict=True):
        mark.add(answer)
    return tokens.stamp(identity).id(marks).decode()


async def test_a_choice_that_diverges_late_ends_the_stream_with_an_error() -> None:
    house, body = sharing(), encoded(chat_body(n=2))
    had = await cut(house, body, 6)
    first, second = house.script.answers[:2]
    last = sealed(had, body, first[:2], [*second[:11], second[11] + 1])
    response = await post(house, CHAT, body, last)
    assert response.status_code == 200
    *events, error = parsed(response.text)
    assert error.data["error"]["code"] == "resume_diverged"
    assert TEXTS[0].startswith("The quick" + told(events, 0).text) and told(events, 0).text
    assert not told(events, 1).text
    assert house.dispatch.settled()


async def test_an_answer_that_ends_too_early_diverges() -> None:
    here, there = sharing(), sharing()
    body = encoded(chat_body())
    had = await cut(here, body, 6)
    there.script.answers[0] = there.script.answers[0][:3]
    response = await post(there, CHAT, body, had[-1].id)
    assert (response.status_code, response.json()["error"]["code"]) == (409, "resume_diverged")


async def test_another_model_revision_is_refused_before_anything_is_computed() -> None:
    here, there = sharing(), sharing()
    body = encoded(chat_body())
    had = await cut(here, body, 2)
    there.dispatch.model = replace(there.dispatch.model, numerics_id="fp_other")
    response = await post(there, CHAT, body, had[-1].id)
    assert (response.status_code, response.json()["error"]["code"]) == (409, "resume_diverged")
    assert not there.dispatch.requests


async def test_only_the_same_request_by_the_same_sender_resumes() -> None:
    house, body = sharing(), encoded(chat_body(max_tokens=9))
    had = kept((await streamed(house, CHAT, body, authorization="Bearer a"))[:3])
    last = had[-1].id
    assert last is not None
    made = len(house.dispatch.requests)
    refused = [
        await post(house, CHAT, body, last),
        await post(house, CHAT, body, last, authorization="Bearer b"),
        await post(house, CHAT, body + b" ", last, authorization="Bearer a"),
        await post(house, CHAT, encoded(chat_body(max_tokens=8)), last, authorization="Bearer a"),
        await post(house, TEXT, encoded(text_body()), last, authorization="Bearer a"),
        await post(house, CHAT, body, last[:-4], authorization="Bearer a"),
        await post(sharing(), CHAT, body, "A" * 20000, authorization="Bearer a"),
        await post(house, CHAT, body.replace(b"true", b"false"), last, authorization="Bearer a"),
    ]
    assert {response.status_code for response in refused} == {400}
    assert {response.json()["error"]["code"] for response in refused} == {"invalid_resume_token"}
    assert len(house.dispatch.requests) == made
    assert (await streamed(house, CHAT, body, last, authorization="Bearer a"))[-1].data == "[DONE]"


async def test_another_secret_refuses() -> None:
    body = encoded(chat_body())
    had = await cut(sharing(), body, 2)
    response = await post(make_house(), CHAT, body, had[-1].id)
    assert response.json()["error"]["code"] == "invalid_resume_token"


async def test_an_empty_header_is_none() -> None:
    house = sharing()
    events = await streamed(house, CHAT, encoded(chat_body()), "")
    assert told(events, 0).text == TEXTS[0]


@pytest.mark.parametrize("name", ["x-tenant", "x-attempt", "x-generation", "x-seed", "x-emitted", "x-holder"])
async def test_headers_from_outside_claim_no_rights(name: str) -> None:
    plain, claimed = sharing(), sharing()
    body = encoded(chat_body())
    had = await cut(plain, body, 2)
    events = await streamed(claimed, CHAT, body, had[-1].id, **{name: "7"})
    await streamed(plain, CHAT, body, had[-1].id)
    first, again = claimed.dispatch.requests[0], plain.dispatch.requests[-1]
    assert (first.id, first.continuation, first.qos) == (again.id, again.continuation, again.qos)
    assert told([*had, *events], 0).text == TEXTS[0]


async def test_a_full_queue_does_not_keep_a_stream_from_going_on() -> None:
    here, there = sharing(), sharing()
    body = encoded(chat_body())
    had = await cut(here, body, 2)
    there.dispatch.refusal = queue_full(1.0)
    rest = await streamed(there, CHAT, body, had[-1].id)
    assert told([*had, *rest], 0).text == TEXTS[0]


async def test_the_deadline_of_the_first_token_has_been_met_before() -> None:
    here, there = sharing(), sharing()
    body = encoded(chat_body())
    had = await cut(here, body, 2)
    deadlines = {"x-ttft-deadline-ms": "1000", "x-deadline-ms": "60000"}
    await streamed(there, CHAT, body, had[-1].id, **deadlines)
    urgency = there.dispatch.requests[0].qos
    assert urgency.ttft_deadline is None and urgency.deadline is not None


async def test_nothing_is_counted_twice() -> None:
    here, there = sharing(), sharing()
    body = encoded(chat_body())
    had = await cut(here, body, 4)
    await streamed(there, CHAT, body, had[-1].id)
    shown = there.metrics.render().decode()
    total = len(there.script.answers[0])
    assert f'generation_tokens_total{{model="tiny"}} {total - 4.0}' in shown
    assert 'inference_stack_prompt_tokens_total{model="tiny"} 0.0' in shown
    assert 'inference_stack_time_to_first_token_seconds_count{model="tiny"} 0.0' in shown
    assert 'inference_stack_stream_resumes_total{model="tiny"} 1.0' in shown


async def test_what_is_not_streamed_has_no_ids() -> None:
    response = await post(sharing(), CHAT, encoded(chat_body()).replace(b"true", b"false"))
    assert "x-resumable" not in response.headers


async def test_a_stream_of_too_many_choices_carries_no_ids() -> None:
    response = await post(sharing(max_choices=200), TEXT, encoded(text_body(prompt=["a", "b"], n=65)))
    assert response.status_code == 200
    assert "x-resumable" not in response.headers
    assert not any(event.id for event in parsed(response.text))


async def test_the_template_sees_the_same_time() -> None:
    here, there = sharing(), sharing()
    body = encoded(chat_body())
    had = await cut(here, body, 2)
    rest = await streamed(there, CHAT, body, had[-1].id)
    assert len(constants([*had, *rest])) == 1
