"""Chat completions: what the engine is asked, and what the client gets."""

from typing import Any

import pytest

from inference_stack.core.request import Qos
from tests.gateway.house import CONTEXT, EOS, MODEL, TEXTS, TOKENIZER, House, chat_body, client, events, make_house

CHAT = "/v1/chat/completions"


async def ask(house: House, **fields: Any) -> dict[str, Any]:
    async with client(house) as http:
        response = await http.post(CHAT, json=chat_body(**fields))
    assert response.status_code == 200, response.text
    return dict(response.json())


async def stream(house: House, **fields: Any) -> list[Any]:
    async with client(house) as http, http.stream("POST", CHAT, json=chat_body(stream=True, **fields)) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return await events(response.aiter_lines())


async def test_answer_has_openais_shape() -> None:
    answer = await ask(make_house())
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"}
    assert (answer["object"], answer["model"], answer["system_fingerprint"]) == ("chat.completion", MODEL, "fp_tiny")
    assert answer["id"].startswith("chatcmpl-")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TEXTS[0], "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


async def test_usage_counts_prompt_completion_and_cached_tokens() -> None:
    house = make_house()
    usage = (await ask(house))["usage"]
    prompt = len(house.dispatch.requests[0].continuation.prompt)
    completion = len(house.script.answers[0])
    assert usage["prompt_tokens"] == prompt
    assert usage["completion_tokens"] == completion
    assert usage["total_tokens"] == prompt + completion
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3}


async def test_the_prompt_is_the_templates() -> None:
    house = make_house()
    await ask(house, messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    prompt = TOKENIZER.decode(house.dispatch.requests[0].continuation.prompt, skip_special_tokens=False)
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_the_final_message_can_be_continued() -> None:
    house = make_house()
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, I"}]
    await ask(house, messages=messages, continue_final_message=True)
    prompt = TOKENIZER.decode(house.dispatch.requests[0].continuation.prompt, skip_special_tokens=False)
    assert prompt.endswith("<|im_start|>assistant\nWell, I")


async def test_control_tokens_in_a_message_are_text() -> None:
    house = make_house()
    await ask(house, messages=[{"role": "user", "content": "<|im_end|>"}])
    assert house.dispatch.requests[0].continuation.prompt.count(EOS) == 1


async def test_parameters_reach_the_engine() -> None:
    house = make_house()
    await ask(
        house,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=-0.3,
        logit_bias={"5": -100},
        stop_token_ids=[9],
        min_tokens=2,
        max_completion_tokens=30,
        prompt_logprobs=1,
    )
    params = house.dispatch.requests[0].continuation.params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 7, 0.1)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.1, 0.2, -0.3)
    assert (params.logit_bias, params.stop_token_ids) == ({5: -100.0}, (9,))
    assert (params.min_tokens, params.max_tokens, params.prompt_logprobs) == (2, 30, 1)


async def test_without_max_tokens_the_rest_of_the_context_is_allowed() -> None:
    house = make_house()
    await ask(house)
    continuation = house.dispatch.requests[0].continuation
    assert continuation.params.max_tokens == CONTEXT - len(continuation.prompt)


async def test_nulls_mean_the_defaults() -> None:
    house = make_house()
    nothing = dict.fromkeys(["temperature", "top_p", "n", "stop", "max_tokens", "logit_bias", "stream", "tools"])
    answer = await ask(house, **nothing, service_tier="auto", user="me", metadata={"a": "b"}, store=False)
    assert answer["choices"][0]["message"]["content"] == TEXTS[0]
    assert house.dispatch.requests[0].continuation.params.temperature == 1.0


@pytest.mark.parametrize(("seed", "expected"), [(7, 7), (-1, 2**64 - 1)])
async def test_a_seed_is_the_noises_key(seed: int, expected: int) -> None:
    house = make_house()
    await ask(house, seed=seed)
    assert house.dispatch.requests[0].continuation.seed == expected


async def test_without_a_seed_every_request_has_its_own() -> None:
    house = make_house()
    for _ in range(3):
        await ask(house, seed=None)
    assert len({request.continuation.seed for request in house.dispatch.requests}) == 3


async def test_choices_share_prompt_and_seed_and_have_their_own_number() -> None:
    house = make_house()
    answer = await ask(house, n=3)
    assert [choice["message"]["content"] for choice in answer["choices"]] == list(TEXTS)
    requests = house.dispatch.requests
    assert [request.id for request in requests] == [f"{answer['id']}-{index}" for index in range(3)]
    assert [request.continuation.choice for request in requests] == [0, 1, 2]
    assert len({request.continuation.prompt for request in requests}) == 1
    assert len({request.continuation.seed for request in requests}) == 1
    assert answer["usage"]["prompt_tokens"] == len(requests[0].continuation.prompt)
    assert answer["usage"]["completion_tokens"] == sum(map(len, house.script.answers))


async def test_logprobs_name_each_shown_token() -> None:
    house = make_house()
    answer = await ask(house, seed=1, logprobs=True, top_logprobs=2)
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"] - 1  # all but the end token
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == TEXTS[1]
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)
    assert set(content[0]) == {"token", "logprob", "bytes", "top_logprobs"}


async def test_prompt_logprobs_rank_every_token_but_the_first() -> None:
    house = make_house()
    ranks = (await ask(house, prompt_logprobs=1))["prompt_logprobs"]
    prompt = house.dispatch.requests[0].continuation.prompt
    assert ranks[0] is None
    assert [next(iter(position)) for position in ranks[1:]] == [str(token) for token in prompt[1:]]


async def test_token_ids_are_returned_on_request() -> None:
    house = make_house()
    answer = await ask(house, return_token_ids=True)
    assert answer["choices"][0]["token_ids"] == house.script.answers[0]
    assert answer["prompt_token_ids"] == list(house.dispatch.requests[0].continuation.prompt)


async def test_a_stop_string_ends_text_usage_and_engine() -> None:
    house = make_house()
    answer = await ask(house, stop=["own fox", "never"])
    choice = answer["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("The quick br", "stop")
    completing = TOKENIZER.encode("The quick brown fox", add_special_tokens=False)
    assert answer["usage"]["completion_tokens"] == len(completing)
    assert house.dispatch.aborted == [f"{answer['id']}-0"]


async def test_a_stop_string_can_be_shown() -> None:
    answer = await ask(make_house(), stop="fox", include_stop_str_in_output=True)
    assert answer["choices"][0]["message"]["content"] == "The quick brown fox"


async def test_a_limit_is_reported_as_length() -> None:
    answer = await ask(make_house(), max_tokens=2)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2


async def test_special_tokens_are_shown_on_request() -> None:
    answer = await ask(make_house(), skip_special_tokens=False, include_stop_str_in_output=True)
    assert answer["choices"][0]["message"]["content"] == TEXTS[0] + "<|im_end|>"


async def test_urgency_comes_from_headers_and_body() -> None:
    house = make_house()
    async with client(house) as http:
        await http.post(CHAT, json=chat_body(priority="batch"))
        headers = {"x-priority": "realtime", "x-deadline-ms": "5000", "x-ttft-deadline-ms": "1000", "x-tenant": "boss"}
        await http.post(CHAT, json=chat_body(priority=3), headers=headers)
    body, header = (request.qos for request in house.dispatch.requests)
    assert body == Qos(priority=-100)
    assert (header.priority, header.tenant) == (100, "")
    arrival = house.dispatch.requests[1].arrival
    assert header.deadline is not None and header.ttft_deadline is not None
    assert round(header.deadline - arrival, 3) == 5.0
    assert round(header.ttft_deadline - arrival, 3) == 1.0


async def test_a_stream_begins_with_the_role_and_ends_with_the_mark() -> None:
    chunks = await stream(make_house())
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert chunks[-1] == "[DONE]"
    assert chunks[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-2])
    assert all("usage" not in chunk for chunk in chunks[:-1])


async def test_a_streams_identity_is_constant() -> None:
    chunks = (await stream(make_house(), n=2, stream_options={"include_usage": True}))[:-1]
    assert len({(c["id"], c["created"], c["model"], c["system_fingerprint"], c["object"]) for c in chunks}) == 1


async def test_usage_comes_last_when_asked_for() -> None:
    house = make_house()
    chunks = await stream(house, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks[:-2])
    assert chunks[-2]["choices"] == []
    assert chunks[-2]["usage"]["completion_tokens"] == len(house.script.answers[0])


VARIANTS: list[dict[str, Any]] = [
    {},
    {"seed": 1},
    {"seed": 1, "logprobs": True, "top_logprobs": 3},
    {"n": 3, "logprobs": True},
    {"stop": ["fox", "Emoji"], "n": 2, "logprobs": True},
    {"max_tokens": 7, "seed": 1},
    {"seed": 1, "return_token_ids": True},
    {"seed": 1, "stop": "🙃", "include_stop_str_in_output": True},
]


@pytest.mark.parametrize("delta_tokens", [1, 3, 100])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
async def test_a_stream_concatenates_to_the_whole(variant: dict[str, Any], delta_tokens: int) -> None:
    house = make_house()
    house.script.delta_tokens = delta_tokens
    whole = await ask(house, **variant)
    chunks = await stream(house, **variant, stream_options={"include_usage": True})
    assert chunks[-2]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        mine = [c for chunk in chunks[:-1] for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["delta"].get("content", "") for c in mine) == choice["message"]["content"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
        entries = [entry for c in mine for entry in (c["logprobs"] or {}).get("content", [])]
        assert entries == (choice["logprobs"] or {}).get("content", [])
        assert [token for c in mine for token in c.get("token_ids", [])] == choice.get("token_ids", [])
