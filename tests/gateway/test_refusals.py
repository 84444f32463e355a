"""Whatever arrives, the refusal is OpenAI's error JSON, names the parameter, and nothing was queued."""

import json
from typing import Any

import pytest

from inference_stack.core.errors import queue_full
from tests.gateway.house import CONTEXT, House, chat_body, client, make_house, text_body

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "Hi"}

CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}

FIELDS: list[tuple[str, dict[str, Any], str, str | None]] = [
    (CHAT, {"messages": None}, "messages", "invalid_type"),
    (CHAT, {"messages": []}, "messages", "array_below_min_length"),
    (CHAT, {"messages": "Hi"}, "messages", "invalid_type"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    (CHAT, {"messages": [{"content": "Hi"}]}, "messages[0].role", "missing_required_parameter"),
    (CHAT, {"messages": [{"role": "tool", "content": "Hi"}]}, "messages[0].role", "invalid_value"),
    (CHAT, {"messages": [USER | {"content": 5}]}, "messages[0].content", "invalid_type"),
    (CHAT, {"messages": [USER | {"content": "a\x00b"}]}, "messages[0].content", "invalid_value"),
    (CHAT, {"messages": [USER | {"colour": "red"}]}, "messages[0].colour", "unknown_parameter"),
    (CHAT, {"messages": [USER | {"content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", "invalid_value"),
    (CHAT, {"model": 5}, "model", "invalid_type"),
    (CHAT, {"model": "none"}, "model", "model_not_found"),
    (CHAT, {"temperature": "hot"}, "temperature", "invalid_type"),
    (CHAT, {"temperature": 2.1}, "temperature", "decimal_above_max_value"),
    (CHAT, {"temperature": -1}, "temperature", "decimal_below_min_value"),
    (CHAT, {"top_p": 1.5}, "top_p", "decimal_above_max_value"),
    (CHAT, {"presence_penalty": 3}, "presence_penalty", "decimal_above_max_value"),
    (CHAT, {"repetition_penalty": 0}, "repetition_penalty", "decimal_below_min_value"),
    (CHAT, {"n": 0}, "n", "integer_below_min_value"),
    (CHAT, {"n": 10**9}, "n", "integer_above_max_value"),
    (CHAT, {"n": True}, "n", "invalid_type"),
    (CHAT, {"max_tokens": -1}, "max_tokens", "integer_below_min_value"),
    (CHAT, {"max_tokens": 10**30}, "max_tokens", "integer_above_max_value"),
    (CHAT, {"max_tokens": CONTEXT + 1}, "messages", "context_length_exceeded"),
    (CHAT, {"max_completion_tokens": 1.5}, "max_completion_tokens", "invalid_type"),
    (CHAT, {"seed": 2**64}, "seed", "integer_above_max_value"),
    (CHAT, {"stop": ["x"] * 17}, "stop", "array_above_max_length"),
    (CHAT, {"stop": ""}, "stop", "string_below_min_length"),
    (CHAT, {"stop": [5]}, "stop[0]", "invalid_type"),
    (CHAT, {"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
    (CHAT, {"logit_bias": {"1": 101}}, "logit_bias[...]", "decimal_above_max_value"),
    (CHAT, {"logit_bias": {"999999": 1}}, "logit_bias", "invalid_value"),
    (CHAT, {"stop_token_ids": [3, 999999]}, "stop_token_ids[1]", "invalid_value"),
    (CHAT, {"min_tokens": 5, "max_tokens": 4}, "min_tokens", "invalid_value"),
    (CHAT, {"top_logprobs": 3}, "top_logprobs", "invalid_value"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    (CHAT, {"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    (CHAT, {"stream": True, "prompt_logprobs": 1}, "prompt_logprobs", "invalid_value"),
    (CHAT, {"continue_final_message": True}, "continue_final_message", "invalid_value"),
    (CHAT, {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", None),
    (CHAT, {"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    (CHAT, {"tool_choice": "auto"}, "tool_choice", "unsupported_parameter"),
    (CHAT, {"tool_choice": {"type": "function"}}, "tool_choice", "unsupported_parameter"),
    (CHAT, {"messages": [CALL]}, "messages[0].tool_calls", "unsupported_parameter"),
    (CHAT, {"functions": [{}]}, "functions", "unsupported_parameter"),
    (CHAT, {"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    (CHAT, {"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
    (CHAT, {"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
    (CHAT, {"prediction": {}}, "prediction", "unsupported_parameter"),
    (CHAT, {"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
    (CHAT, {"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter"),
    (CHAT, {"chat_template": "{{ 7 * 7 }}"}, "chat_template", "unsupported_parameter"),
    (CHAT, {"store": True}, "store", "unsupported_parameter"),
    (CHAT, {"service_tier": "flex"}, "service_tier", "unsupported_parameter"),
    (CHAT, {"colour": "red"}, "colour", "unknown_parameter"),
    (CHAT, {"priority": "urgent"}, "priority", "invalid_value"),
    (CHAT, {"priority": 101}, "priority", "integer_above_max_value"),
    (TEXT, {"prompt": None}, "prompt", "invalid_type"),
    (TEXT, {"prompt": []}, "prompt", "array_below_min_length"),
    (TEXT, {"prompt": ""}, "prompt", "empty_prompt"),
    (TEXT, {"prompt": [[]]}, "prompt[0]", "array_below_min_length"),
    (TEXT, {"prompt": [1, "a"]}, "prompt", "invalid_type"),
    (TEXT, {"prompt": [999999]}, "prompt", "invalid_value"),
    (TEXT, {"prompt": [-1]}, "prompt[0]", "integer_below_min_value"),
    (TEXT, {"prompt": "word " * 500}, "prompt", "context_length_exceeded"),
    (TEXT, {"prompt": ["x"] * 129}, "n", "integer_above_max_value"),
    (TEXT, {"suffix": "end"}, "suffix", "unsupported_parameter"),
    (TEXT, {"best_of": 3}, "best_of", "unsupported_parameter"),
    (TEXT, {"logprobs": 21}, "logprobs", "integer_above_max_value"),
    (TEXT, {"messages": [USER]}, "messages", "unknown_parameter"),
]


def request_body(path: str, fields: dict[str, Any]) -> dict[str, Any]:
    return chat_body(**fields) if path == CHAT else text_body(**fields)


def check_error(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return dict(body["error"])


@pytest.mark.parametrize(("path", "fields", "param", "code"), FIELDS, ids=lambda value: str(value)[:60])
async def test_a_wrong_field_is_named(path: str, fields: dict[str, Any], param: str, code: str | None) -> None:
    house = make_house()
    async with client(house) as http:
        response = await http.post(path, json=request_body(path, fields))
    error = check_error(response, 404 if code == "model_not_found" else 400)
    assert (error["param"], error["code"]) == (param, code)
    assert house.dispatch.requests == []


BODIES: dict[str, bytes] = {
    "empty": b"",
    "bad JSON": b'{"model": "tiny", ',
    "trailing": b"{} {}",
    "not an object": b"[1, 2]",
    "null": b"null",
    "byte order mark": b"\xef\xbb\xbf{}",
    "invalid UTF-8": b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff"}]}',
    "raw null": b'{"model": "tiny", "messages": [{"role": "user", "content": "\x00"}]}',
    "lone surrogate": b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "NaN": b'{"model": "tiny", "temperature": NaN, "messages": [{"role": "user", "content": "Hi"}]}',
    "infinity": b'{"model": "tiny", "temperature": 1e999, "messages": [{"role": "user", "content": "Hi"}]}',
    "huge integer": b'{"model": "tiny", "seed": ' + b"9" * 10_000 + b"}",
    "deep array": b'{"model": "tiny", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep object": b'{"chat_template_kwargs": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "deep unknown": b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize", "/detokenize"])
async def test_garbage_is_a_precise_400(path: str, name: str) -> None:
    house = make_house()
    async with client(house) as http:
        response = await http.post(path, content=BODIES[name], headers={"content-type": "application/json"})
        check_error(response, 400)
        assert (await http.post(CHAT, json=chat_body())).status_code == 200


async def test_messages_say_what_was_expected_and_what_came() -> None:
    async with client(make_house()) as http:
        bound = check_error(await http.post(CHAT, json=chat_body(n=0)), 400)
        kind = check_error(await http.post(CHAT, json=chat_body(n="two")), 400)
        unknown = check_error(await http.post(CHAT, json=chat_body(colour=1)), 400)
        missing = check_error(await http.post(CHAT, json={"model": "tiny"}), 400)
    assert bound["message"] == "Invalid 'n': integer below minimum value. Expected a value >= 1, but got 0 instead."
    assert kind["message"] == "Invalid type for 'n': expected an integer, but got a string instead."
    assert unknown["message"] == "Unrecognized request argument supplied: colour"
    assert missing["message"] == "Missing required parameter: 'messages'."


async def test_a_context_that_is_too_long_is_explained_in_openais_words() -> None:
    async with client(make_house()) as http:
        error = check_error(await http.post(CHAT, json=chat_body(max_tokens=300)), 400)
    assert f"maximum context length is {CONTEXT} tokens" in error["message"]
    assert "300 in the completion" in error["message"]


async def test_a_declared_body_beyond_the_limit_is_not_read() -> None:
    async with client(make_house(max_body_mb=0.001)) as http:
        error = check_error(await http.post(CHAT, json=chat_body(user="x" * 500, stop="y" * 700)), 413)
    assert error["code"] == "body_too_large"


async def test_an_undeclared_body_is_read_up_to_the_limit_only() -> None:
    taken = 0

    async def endless() -> Any:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield b" " * 1000

    async with client(make_house(max_body_mb=0.01)) as http:
        response = await http.post(CHAT, content=endless(), headers={"content-type": "application/json"})
    check_error(response, 413)
    assert taken < 20


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_body_that_is_not_declared_json_is_refused(media_type: str) -> None:
    async with client(make_house()) as http:
        body = json.dumps(chat_body()).encode()
        response = await http.post(CHAT, content=body, headers={"content-type": media_type})
    check_error(response, 415)


@pytest.mark.parametrize(
    ("name", "value"),
    [("x-priority", "urgent"), ("x-priority", "1000"), ("x-deadline-ms", "-5"), ("x-ttft-deadline-ms", "NaN")],
)
async def test_a_wrong_header_is_named(name: str, value: str) -> None:
    async with client(make_house()) as http:
        error = check_error(await http.post(CHAT, json=chat_body(), headers={name: value}), 400)
    assert error["param"] == name


async def test_unknown_paths_and_methods_get_json() -> None:
    async with client(make_house()) as http:
        assert check_error(await http.get("/v1/nothing"), 404)["code"] == "unknown_url"
        response = await http.get(CHAT)
        assert check_error(response, 405)["code"] == "method_not_supported"
        assert response.headers["allow"] == "POST"


async def test_a_full_queue_says_when_to_come_back() -> None:
    house = make_house()
    house.dispatch.refusal = queue_full(2.3)
    async with client(house) as http:
        response = await http.post(CHAT, json=chat_body(stream=True))
    assert check_error(response, 429)["code"] == "queue_full"
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("3", "2300")
    assert house.dispatch.requests == []


async def test_a_model_that_is_not_ready_is_unavailable() -> None:
    house: House = make_house()
    house.dispatch.ready = False
    async with client(house) as http:
        response = await http.post(CHAT, json=chat_body())
    assert check_error(response, 503)["code"] == "unavailable"
    assert response.headers["retry-after"] == "1"
