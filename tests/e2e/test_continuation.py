"""Kill the worker at any moment: clients read the same bytes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.server import STORY, Server

pytestmark = pytest.mark.model

ANSWER_TOKENS = 60
BODY = STORY | {"max_tokens": ANSWER_TOKENS, "logprobs": True, "top_logprobs": 2}
GREEDY = {"temperature": 0}
SEEDED = {"temperature": 1, "seed": 1234}


def chunks(server: Server, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The parsed chunks of a streamed answer."""
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))


def transcript(
    stream: Iterator[dict[str, Any]], on_token: Callable[[int], None] = lambda count: None
) -> dict[str, Any]:
    """What "the same bytes" means: per choice text, logprobs and finish reason; usage; and what is constant in a stream."""
    answer: dict[str, Any] = {"choices": {}, "identities": set()}
    seen = 0
    for chunk in stream:
        assert "error" not in chunk, chunk
        answer["identities"].add((chunk["id"], chunk["created"], chunk["model"]))
        if chunk.get("usage"):
            answer["usage"] = chunk["usage"]["completion_tokens"], chunk["usage"]["prompt_tokens"]
        for choice in chunk["choices"]:
            mine = answer["choices"].setdefault(choice["index"], {"text": "", "logprobs": [], "finish": None})
            mine["text"] += choice["delta"].get("content") or ""
            mine["logprobs"] += (choice.get("logprobs") or {}).get("content") or []
            mine["finish"] = choice["finish_reason"] or mine["finish"]
            seen = max(seen, len(mine["logprobs"]))
        on_token(seen)
    assert len(answer.pop("identities")) == 1
    return answer


class Assassin:
    """Kills the worker once the answer has reached `position` tokens, and checks that it was alive and busy then."""

    def __init__(self, server: Server, position: int, number: int = signal.SIGKILL) -> None:
        self._server = server
        self._position = position
        self._signal = number
        self.killed: list[int] = []

    def __call__(self, tokens: int) -> None:
        if tokens >= self._position and not self.killed:
            assert self._server.metric("inference_stack_requests_running") >= 1
            assert self._server.metric("vllm:generation_tokens_total") < self.end
            self.killed.append(self._server.kill_worker(self._signal))

    def arm(self, choices: int = 1) -> Assassin:
        """Note where the token counter will stand when the answer is complete."""
        self.end = self._server.metric("vllm:generation_tokens_total") + choices * ANSWER_TOKENS
        return self


def check_kill(server: Server, body: dict[str, Any], position: int, number: int = signal.SIGKILL) -> None:
    """An undisturbed answer and one whose worker dies at `position` are the same."""
    expected = transcript(chunks(server, body))
    assert all(choice["finish"] == "length" for choice in expected["choices"].values())
    assassin = Assassin(server, position, number).arm(body.get("n", 1))
    assert transcript(chunks(server, body), assassin) == expected
    assert assassin.killed and server.worker_pid() not in assassin.killed


@pytest.mark.parametrize(("sampling", "position"), [(GREEDY, 5), (SEEDED, 30)], ids=["greedy", "seeded"])
def test_a_killed_worker_changes_nothing(server: Server, sampling: dict[str, Any], position: int) -> None:
    check_kill(server, BODY | sampling, position)


def test_choices_and_logprobs_survive_a_kill(server: Server) -> None:
    check_kill(server, BODY | SEEDED | {"n": 2}, 20)


def test_a_stopped_worker_is_found_out(server: Server) -> None:
    check_kill(server, BODY | GREEDY, 10, signal.SIGSTOP)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_kills_at_every_fifth_token_change_nothing(server: Server, sampling: dict[str, Any]) -> None:
    for position in range(5, ANSWER_TOKENS, 5):
        check_kill(server, BODY | sampling | {"n": 2}, position)


def wait_for(condition: Callable[[], bool]) -> None:
    """Look until it holds; a server that never gets there fails the test."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise TimeoutError("the server never came to where the test wanted it")


def test_a_kill_during_prefill_changes_nothing(server: Server) -> None:
    words = " ".join(f"item {number} of {os.getpid()}" for number in range(130))
    body = BODY | GREEDY | {"messages": [{"role": "user", "content": f"Summarise: {words}"}], "max_tokens": 8}
    generated = server.metric("vllm:generation_tokens_total")
    at_kill: list[float] = []

    def kill_while_prefilling() -> None:
        wait_for(lambda: server.metric("inference_stack_requests_running") == 1)
        server.kill_worker()
        at_kill.append(server.metric("vllm:generation_tokens_total"))

    thread = threading.Thread(target=kill_while_prefilling)
    thread.start()
    disturbed = transcript(chunks(server, body))
    thread.join()
    assert at_kill == [generated], "it was killed too late: there were tokens already"
    assert disturbed == transcript(chunks(server, body))


@pytest.mark.parametrize("state", [pytest.param("starting", marks=pytest.mark.slow), "ready"])
def test_a_second_kill_during_recovery_changes_nothing(server: Server, state: str) -> None:
    """Once while the new worker loads, once while it already runs what was moved to it."""
    body = BODY | SEEDED | {"n": 2}
    expected = transcript(chunks(server, body))
    killed: list[int] = []

    def there() -> bool:
        (worker,) = server.http.get("/health").json()["workers"]
        running = state == "starting" or server.metric("inference_stack_requests_running") == 2
        return worker["pid"] != killed[0] and worker["state"] == state and running

    def kill_the_next_one() -> None:
        wait_for(there)
        killed.append(server.kill_worker())

    second = threading.Thread(target=kill_the_next_one)

    def kill_twice(tokens: int) -> None:
        if tokens >= 25 and not killed:
            killed.append(server.kill_worker())
            second.start()

    assert transcript(chunks(server, body), kill_twice) == expected
    second.join()
    assert len(set(killed)) == 2
