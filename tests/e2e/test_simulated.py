"""The simulated engine behind the real gateway, node, worker process and wire."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from inference_stack.artifacts.resolve import resolve
from inference_stack.engine.words import describe
from inference_stack.simulator.tokens import FIRST_TOKEN, stream
from tests.e2e.server import Server
from tests.e2e.test_continuation import BODY, SEEDED, check_kill, chunks

pytestmark = pytest.mark.model
PROMPT = list(range(100, 140))
SIMULATED = ("smollm2", "--engine", "simulated")


@pytest.fixture(scope="module")
def simulated(demo_model: Path) -> Iterator[Server]:
    """A server whose steps take about 12 ms."""
    assert demo_model.exists()
    running = Server(*SIMULATED, "--preset", "a100-80", "--preset-model", "llama-3.1-8b").wait_ready()
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def words(demo_model: Path) -> list[int]:
    """The words of the demo model's vocabulary."""
    ids: list[int] = describe(resolve(str(demo_model)))[1].ids.tolist()
    return ids


def expected(words: list[int], seed: int, prompt: int, count: int) -> list[int]:
    return [words[place - FIRST_TOKEN] for place in stream(seed, prompt, count, FIRST_TOKEN + len(words)).tolist()]


def body(seed: int, count: int) -> dict[str, Any]:
    return {"model": "smollm2", "prompt": PROMPT, "max_tokens": count, "seed": seed, "stream": True}


def text_of(server: Server, tokens: list[int]) -> str:
    answer = server.http.post("/detokenize", json={"model": "smollm2", "tokens": tokens}).json()
    return str(answer["prompt"])


def test_a_streamed_answer_is_a_function_of_its_seed(simulated: Server, words: list[int]) -> None:
    with simulated.http.stream("POST", "/v1/completions", json=body(7, 30)) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: {")]
    events = [httpx.Response(200, text=line.removeprefix("data: ")).json() for line in lines]
    text = "".join(choice["text"] for event in events for choice in event["choices"])
    assert text == text_of(simulated, expected(words, 7, len(PROMPT), 30))
    assert sum(bool(choice["text"]) for event in events for choice in event["choices"]) > 20, "it was not streamed"


def test_a_killed_worker_changes_nothing(simulated: Server) -> None:
    check_kill(simulated, BODY | SEEDED | {"n": 2}, 20)


async def ask_all(url: str, seeds: range) -> list[str]:
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None)) as http:
        asked = [http.post("/v1/completions", json=body(seed, 40) | {"stream": False}) for seed in seeds]
        return [answer.json()["choices"][0]["text"] for answer in await asyncio.gather(*asked)]


def test_many_at_once_get_their_own_answers(simulated: Server, words: list[int]) -> None:
    seeds = range(1000, 1032)
    texts = asyncio.run(ask_all(simulated.url, seeds))
    assert texts == [text_of(simulated, expected(words, seed, len(PROMPT), 40)) for seed in seeds]
    assert simulated.metric("inference_stack_requests_running") == 0


def test_health_says_that_it_is_simulated(simulated: Server) -> None:
    (worker,) = simulated.http.get("/health").json()["workers"]
    assert worker["device"] == "simulated a100-80"


def test_usage_is_counted(simulated: Server) -> None:
    asked = BODY | {"max_tokens": 5, "logprobs": True, "top_logprobs": 3}
    found = list(chunks(simulated, asked))
    assert found[-1]["usage"]["completion_tokens"] == 5
    entries = [
        entry
        for chunk in found
        for choice in chunk["choices"]
        for entry in (choice.get("logprobs") or {}).get("content") or []
    ]
    assert [len(entry["top_logprobs"]) for entry in entries] == [3] * 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            (*SIMULATED, "--preset", "b300"),
            "there is no preset 'b300'; there are cpu, l4, a100-40, a100-80, h100, h200",
        ),
        ((*SIMULATED, "--preset-model", "gpt-2"), "there is no preset model 'gpt-2'; there are smollm2-135m"),
        (("smollm2", "--preset", "h100"), "presets are for --engine simulated"),
    ],
    ids=["preset", "model", "native"],
)
def test_what_cannot_be_meant_is_refused(demo_model: Path, arguments: tuple[str, ...], said: str) -> None:
    assert demo_model.exists()
    command = [sys.executable, "-m", "inference_stack.cli.main", "serve", *arguments, "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert said in " ".join(done.stderr.split())
