"""OpenAI's own Python client, unmodified, over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from inference_stack.core.errors import queue_full
from tests.gateway.house import CONTEXT, MODEL, TEXTS, Live, live

HI: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def server() -> Iterator[Live]:
    with live() as found:
        yield found


@pytest.fixture
def ai(server: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_chat(ai: openai.OpenAI) -> None:
    answer = ai.chat.completions.create(model=MODEL, messages=HI, seed=0)
    assert answer.choices[0].message.content == TEXTS[0]
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer._request_id is not None


def test_streaming_with_usage(ai: openai.OpenAI) -> None:
    stream = ai.chat.completions.create(
        model=MODEL, messages=HI, seed=1, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXTS[1]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0


def test_the_streaming_helper_accumulates_the_same_answer(ai: openai.OpenAI) -> None:
    with ai.chat.completions.stream(model=MODEL, messages=HI, seed=1, n=2, logprobs=True) as stream:
        stream.until_done()
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == [TEXTS[1], TEXTS[2]]
    assert final.choices[0].logprobs is not None and final.choices[0].logprobs.content


def test_choices_stop_and_seed(ai: openai.OpenAI) -> None:
    answer = ai.chat.completions.create(model=MODEL, messages=HI, seed=0, n=3, stop=["fox"])
    assert answer.choices[0].message.content == "The quick brown "
    assert [choice.message.content for choice in answer.choices[1:]] == list(TEXTS[1:])


def test_logprobs(ai: openai.OpenAI) -> None:
    answer = ai.chat.completions.create(model=MODEL, messages=HI, seed=0, logprobs=True, top_logprobs=2, max_tokens=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [entry.token for entry in logprobs.content] == ["The", " quick", " brown"]
    assert all(len(entry.top_logprobs) == 2 for entry in logprobs.content)


def test_completions_with_echo_and_logprobs(ai: openai.OpenAI) -> None:
    answer = ai.completions.create(model=MODEL, prompt="One two", seed=0, echo=True, logprobs=1, max_tokens=2)
    assert answer.choices[0].text == "One twoThe quick"
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.text_offset == [0, 3, 7, 10]


def test_extensions_pass_in_the_extra_body(ai: openai.OpenAI, server: Live) -> None:
    ai.chat.completions.create(model=MODEL, messages=HI, extra_body={"top_k": 5, "priority": "realtime"})
    request = server.house.dispatch.requests[-1]
    assert (request.continuation.params.top_k, request.qos.priority) == (5, 100)


def test_models(ai: openai.OpenAI) -> None:
    assert [model.id for model in ai.models.list()] == [MODEL]
    assert ai.models.retrieve(MODEL).owned_by == "inference-stack"


def test_errors_are_typed(ai: openai.OpenAI, server: Live) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        ai.chat.completions.create(model="nothing", messages=HI)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        ai.chat.completions.create(model=MODEL, messages=HI, max_tokens=CONTEXT)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "messages")
    server.house.dispatch.refusal = queue_full(1.0)
    with pytest.raises(openai.RateLimitError) as full:
        ai.chat.completions.create(model=MODEL, messages=HI)
    assert full.value.response.headers["retry-after"] == "1"


def test_leaving_a_stream_aborts_it(ai: openai.OpenAI, server: Live) -> None:
    server.house.script.hold_after = 1
    stream = ai.chat.completions.create(model=MODEL, messages=HI, seed=0, stream=True)
    assert next(iter(stream)).choices[0].delta.role == "assistant"
    stream.close()
    server.wait(server.house.dispatch.streams[0].aborted)
