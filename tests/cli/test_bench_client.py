import json
from dataclasses import replace
from typing import Any

import pytest

from inference_stack.cli.background import free_port
from inference_stack.cli.bench.client import body_of, complete
from inference_stack.cli.bench.spec import Job, Load, Outcome
from inference_stack.core.seams import SystemClock
from tests.cli.conftest import Answer, event, stream

JOB = Job(prompt=[5, 6, 7], output_len=4)


async def send(fake: Any, answer: Answer | None = None, load: Load | None = None) -> Outcome:
    if answer is not None:
        fake.answers["/v1/completions"] = lambda body: answer
    load = replace(load or Load(model="m"), url=fake.url)
    return await complete(load, JOB, SystemClock())


async def test_a_stream_is_timed_and_counted(fake: Any) -> None:
    outcome = await send(fake)
    assert (outcome.error, outcome.prompt_tokens, outcome.output_tokens) == ("", 3, 4)
    assert len(outcome.events) == 4
    assert len(outcome.gaps) == 3
    assert outcome.begin < outcome.events[0] <= outcome.events[-1] <= outcome.end


async def test_without_usage_the_pieces_of_text_are_counted(fake: Any) -> None:
    assert (await send(fake, stream(["a", "", "b"]))).output_tokens == 2


async def test_the_request_says_what_was_asked(fake: Any) -> None:
    await send(fake, load=Load(model="m", ignore_eos=True, temperature=0.5))
    (body,) = fake.bodies("/v1/completions")
    assert body["prompt"] == [5, 6, 7]
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"], body["stream"]) == (4, True, 0.5, True)


def test_a_chat_wraps_text_in_a_message() -> None:
    body = body_of(Load(model="m", api="chat"), Job(prompt="hi", output_len=1))
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    assert "prompt" not in body


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer([json.dumps({"error": {"code": "queue_full"}}).encode()], 429), "http_429:queue_full"),
        (Answer([b"<html>"], 502), "http_502"),
        (Answer([event({"error": {"code": "worker_crashed", "message": "x"}})]), "stream:worker_crashed"),
        (Answer([event({"choices": [{"text": "a"}]})]), "truncated"),
        (Answer([event({"choices": [{"text": "a"}]})], whole=False), "protocol"),
        (Answer([event(b"[DONE]")]), "empty"),
        (Answer([event(b"not json")]), "protocol"),
    ],
)
async def test_failures_are_told_apart(fake: Any, answer: Answer, kind: str) -> None:
    assert (await send(fake, answer)).error == kind


async def test_nobody_listening_is_its_own_kind() -> None:
    load = Load(url=f"http://127.0.0.1:{free_port()}", model="m")
    assert (await complete(load, JOB, SystemClock())).error == "connection_refused"


async def test_a_request_that_takes_too_long_is_a_timeout(fake: Any) -> None:
    endless = Answer([event({"choices": [{"text": "a"}]})] * 1_000_000)
    assert (await send(fake, endless, Load(model="m", timeout=0.1))).error == "timeout"
