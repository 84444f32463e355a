"""Unmodified clients of OpenAI's API talk to the server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

from tests.e2e.server import Server

pytestmark = pytest.mark.model

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_openai_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=16, temperature=0)
    assert "Paris" in str(answer.choices[0].message.content)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_openai_streaming_equals_the_whole(client: openai.OpenAI) -> None:
    arguments = {"model": "smollm2", "messages": QUESTION, "max_tokens": 24, "temperature": 0.8, "seed": 5}
    whole = client.chat.completions.create(**arguments)
    stream = client.chat.completions.create(**arguments, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content


def test_openai_choices_differ_and_repeat(client: openai.OpenAI) -> None:
    arguments = {"model": "smollm2", "messages": QUESTION, "max_tokens": 12, "temperature": 1.5, "seed": 9, "n": 3}
    first, second = (
        [choice.message.content for choice in client.chat.completions.create(**arguments).choices] for _ in range(2)
    )
    assert first == second
    assert len(set(first)) > 1


def test_openai_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2", messages=QUESTION, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    entries = answer.choices[0].logprobs.content
    assert entries and all(entry.top_logprobs[0].token == entry.token for entry in entries)
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 3 for entry in entries)


def test_openai_stop_strings(client: openai.OpenAI) -> None:
    arguments = {"model": "smollm2", "prompt": "1, 2, 3, 4, 5, 6,", "max_tokens": 24, "temperature": 0}
    assert "9" in client.completions.create(**arguments).choices[0].text
    stopped = client.completions.create(**arguments, stop=["9", "never"])
    assert "9" not in stopped.choices[0].text and stopped.choices[0].finish_reason == "stop"


def test_openai_errors_are_typed(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nothing", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="smollm2", prompt="word " * 20_000, max_tokens=1)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as negative:
        client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=-1)
    assert negative.value.param == "max_tokens"


def test_openai_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["smollm2"]


def test_prompt_logprobs_score_a_continuation_as_evaluation_harnesses_do(client: openai.OpenAI) -> None:
    def score(text: str) -> float:
        answer = client.completions.create(
            model="smollm2", prompt=text, max_tokens=0, echo=True, logprobs=1, temperature=0
        )
        values = answer.choices[0].logprobs.token_logprobs
        assert values[0] is None and answer.choices[0].text == text
        return float(values[-1])

    assert score("The capital of France is Paris") > score("The capital of France is banana")


def test_langchain(server: Server) -> None:
    chat = ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model="smollm2", temperature=0, max_tokens=16)
    assert "Paris" in str(chat.invoke([HumanMessage(QUESTION[0]["content"])]).content)
    assert "Paris" in "".join(str(piece.content) for piece in chat.stream(QUESTION[0]["content"]))


def test_llm(server: Server, tmp_path: Path) -> None:
    models = [{"model_id": "ours", "model_name": "smollm2", "api_base": f"{server.url}/v1", "api_key_name": "none"}]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))
    command = [sys.executable, "-m", "llm", "-m", "ours", "-o", "temperature", "0", QUESTION[0]["content"]]
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert "Paris" in done.stdout, done.stderr


def test_curl(server: Server) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body = json.dumps({"model": "smollm2", "messages": QUESTION, "max_tokens": 8, "temperature": 0})
    command = ["curl", "-sS", f"{server.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "Paris" in json.loads(done.stdout)["choices"][0]["message"]["content"]
