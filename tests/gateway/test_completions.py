"""Text completions: forms of the prompt, echo, columns of logprobs, scoring."""

from typing import Any

import pytest

from tests.gateway.house import EOS, TEXTS, TOKENIZER, House, client, events, make_house, text_body

TEXT = "/v1/completions"


async def ask(house: House, **fields: Any) -> dict[str, Any]:
    async with client(house) as http:
        response = await http.post(TEXT, json=text_body(**fields))
    assert response.status_code == 200, response.text
    return dict(response.json())


async def stream(house: House, **fields: Any) -> list[Any]:
    async with client(house) as http, http.stream("POST", TEXT, json=text_body(stream=True, **fields)) as response:
        assert response.status_code == 200
        return await events(response.aiter_lines())


async def test_answer_has_openais_shape() -> None:
    answer = await ask(make_house())
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"}
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"text": TEXTS[0], "index": 0, "logprobs": None, "finish_reason": "stop"}]


async def test_sixteen_tokens_by_default() -> None:
    answer = await ask(make_house(), max_tokens=None)
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("One two", ["One two"]),
        (["One", "two"], ["One", "two"]),
        ([40, 41], ["IJ"]),
        ([[40], [41, 42]], ["I", "JK"]),
    ],
)
async def test_prompts_come_in_four_forms(prompt: Any, expected: list[str]) -> None:
    house = make_house()
    await ask(house, prompt=prompt)
    sent = [TOKENIZER.decode(request.continuation.prompt) for request in house.dispatch.requests]
    assert sent == expected


async def test_prompts_times_choices_are_numbered_in_order() -> None:
    house = make_house()
    answer = await ask(house, prompt=["One", "two"], n=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == [TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[1]]
    assert [request.continuation.choice for request in house.dispatch.requests] == [0, 1, 0, 1]


async def test_a_prompt_repeated_without_a_seed_is_sampled_anew() -> None:
    house = make_house()
    await ask(house, prompt=["One", "One"], seed=None)
    assert len({request.continuation.seed for request in house.dispatch.requests}) == 2


async def test_echo_puts_the_prompt_before_the_text() -> None:
    answer = await ask(make_house(), echo=True, prompt=["One two", "Grüße"])
    assert [choice["text"] for choice in answer["choices"]] == ["One two" + TEXTS[0], "Grüße" + TEXTS[0]]


async def test_logprobs_are_columns_over_the_tokens() -> None:
    answer = await ask(make_house(), seed=1, logprobs=2)
    columns, text = answer["choices"][0]["logprobs"], answer["choices"][0]["text"]
    assert len({len(column) for column in columns.values()}) == 1
    for token, offset, top in zip(columns["tokens"], columns["text_offset"], columns["top_logprobs"], strict=True):
        assert token in top
        if not token.startswith("bytes:"):
            assert text[offset:].startswith(token)


async def test_scoring_returns_the_prompts_logprobs_and_generates_nothing() -> None:
    house = make_house()
    answer = await ask(house, prompt="One two three", echo=True, logprobs=1, max_tokens=0)
    choice = answer["choices"][0]
    assert choice["text"] == "One two three"
    assert choice["logprobs"]["tokens"] == ["One", " two", " three"]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["top_logprobs"][0] is None
    assert all(value <= 0 for value in choice["logprobs"]["token_logprobs"][1:])
    assert choice["logprobs"]["text_offset"] == [0, 3, 7]
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


async def test_prompt_logprobs_can_be_had_without_echo() -> None:
    house = make_house()
    ranks = (await ask(house, prompt_logprobs=0))["choices"][0]["prompt_logprobs"]
    assert ranks[0] is None
    assert list(ranks[1]) == [str(house.dispatch.requests[0].continuation.prompt[1])]


async def test_ignored_end_tokens_do_not_end() -> None:
    house = make_house()
    house.script.answers[0] = [40, EOS, 41]
    answer = await ask(house, ignore_eos=True, max_tokens=3)
    assert answer["choices"][0]["text"] == "IJ"
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_a_stop_token_ends_without_text() -> None:
    house = make_house()
    house.script.answers[0] = [40, 41, 42]
    answer = await ask(house, stop_token_ids=[41])
    assert answer["choices"][0] == {"text": "I", "index": 0, "logprobs": None, "finish_reason": "stop"}
    assert answer["usage"]["completion_tokens"] == 2


async def test_stop_strings_wait_for_min_tokens() -> None:
    house = make_house()
    house.script.answers[0] = [40, 41, 40, 41]
    answer = await ask(house, stop="J", min_tokens=3, max_tokens=4)
    assert answer["choices"][0]["text"] == "IJI"


async def test_best_of_equal_to_n_is_accepted() -> None:
    assert len((await ask(make_house(), n=2, best_of=2))["choices"]) == 2


VARIANTS: list[dict[str, Any]] = [
    {},
    {"seed": 1, "logprobs": 2},
    {"echo": True},
    {"echo": True, "logprobs": 1, "seed": 1, "prompt": "Grüße 🙂"},
    {"echo": True, "logprobs": 0, "max_tokens": 0},
    {"prompt": ["One", "two"], "n": 2, "logprobs": 1},
    {"stop": "jumps", "logprobs": 1},
]


@pytest.mark.parametrize("delta_tokens", [1, 4])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
async def test_a_stream_concatenates_to_the_whole(variant: dict[str, Any], delta_tokens: int) -> None:
    house = make_house()
    house.script.delta_tokens = delta_tokens
    whole = await ask(house, **variant)
    chunks = await stream(house, **variant, stream_options={"include_usage": True})
    assert chunks[-1] == "[DONE]"
    assert chunks[-2]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        mine = [c for chunk in chunks[:-1] for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
        for name, column in (choice["logprobs"] or {}).items():
            assert [entry for c in mine for entry in (c["logprobs"] or {name: []})[name]] == column
