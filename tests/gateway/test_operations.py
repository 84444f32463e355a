"""Probes, metrics, drain, tokens and the headers around every answer."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from inference_stack.core.errors import unavailable
from inference_stack.core.fleet import NodeState
from inference_stack.core.stats import GpuStats
from inference_stack.gateway.observer import MetricsObserver
from tests.gateway.house import MODEL, TINY, TOKENIZER, chat_body, client, make_house
from tests.gateway.scripted import WORKER

CHAT = "/v1/chat/completions"


def sample(text: str, name: str) -> float:
    """The sum of a metric's samples."""
    lines = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] == name]
    assert lines, name
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


async def test_health_shows_workers() -> None:
    async with client(make_house()) as http:
        health = (await http.get("/health")).json()
    assert health["status"] == "ok"
    (worker,) = health["workers"]
    assert (worker["pid"], worker["state"], worker["restarts"], worker["device"]) == (4711, "ready", 2, "cpu:0")


async def test_ready_only_with_a_model() -> None:
    house = make_house()
    async with client(house) as http:
        assert (await http.get("/ready")).status_code == 200
        house.dispatch.ready = False
        response = await http.get("/ready")
        assert response.status_code == 503 and response.headers["retry-after"]
        assert (await http.get("/live")).status_code == 200
        assert (await http.get("/health")).json()["status"] == "degraded"


async def test_not_ready_while_every_node_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    house = make_house()
    drained = tuple(replace(node, draining=True) for node in house.dispatch.nodes())
    monkeypatch.setattr(house.dispatch, "nodes", lambda: drained)
    async with client(house) as http:
        assert (await http.get("/ready")).status_code == 503


async def test_a_drain_refuses_the_new_and_finishes_the_running() -> None:
    house = make_house()
    house.script.hold_after = 1
    async with client(house) as http:
        running = asyncio.create_task(http.post(CHAT, json=chat_body(stream=True)))
        await house.dispatch.holding.wait()
        house.app.state.gateway.begin_drain()
        assert (await http.get("/ready")).status_code == 503
        refused = await http.post(CHAT, json=chat_body())
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert (await http.get("/live")).status_code == 200
        house.script.go.set()
        assert "[DONE]" in (await running).text


async def test_models_are_listed_and_found() -> None:
    async with client(make_house()) as http:
        (card,) = (await http.get("/v1/models")).json()["data"]
        assert (card["id"], card["object"]) == (MODEL, "model")
        assert (await http.get(f"/v1/models/{MODEL}")).json() == card
        assert (await http.get("/v1/models/a/b")).status_code == 404


async def test_a_scrape_in_mid_stream_shows_the_request_and_its_tokens() -> None:
    house = make_house()
    house.script.hold_after = 5
    async with client(house) as http:
        running = asyncio.create_task(http.post(CHAT, json=chat_body(stream=True)))
        await house.dispatch.holding.wait()
        text = (await http.get("/metrics")).text
        assert sample(text, "inference_stack_requests_running") == 1
        assert sample(text, "vllm:num_requests_running") == 1
        assert sample(text, "inference_stack_requests_in_flight") == 1
        assert sample(text, "inference_stack_generation_tokens_total") == 5
        assert sample(text, "vllm:generation_tokens_total") == 5
        house.script.go.set()
        await running
        text = (await http.get("/metrics")).text
    assert sample(text, "vllm:generation_tokens_total") == len(house.script.answers[0])
    assert sample(text, "vllm:request_success_total") == 1
    assert sample(text, "vllm:time_to_first_token_seconds_count") == 1
    assert sample(text, "inference_stack_requests_in_flight") == 0


async def test_requests_are_counted_by_route_and_status() -> None:
    house = make_house()
    async with client(house) as http:
        await http.post(CHAT, json=chat_body(n=0))
        await http.get("/v1/unknown/path")
        text = (await http.get("/metrics")).text
    assert f'inference_stack_requests_total{{route="{CHAT}",status="400"}} 1.0' in text
    assert 'inference_stack_requests_total{route="unknown",status="404"} 1.0' in text


async def test_the_observer_shows_workers_and_forgets_the_dead() -> None:
    house = make_house()
    observer = MetricsObserver(house.metrics)
    observer.observe_node(NodeState(node="n0", ready=True, models=(TINY,), workers=(WORKER,)))
    text = house.metrics.render().decode()
    assert 'inference_stack_worker_info{device="cpu:0",node="n0",pid="4711",state="ready"} 1.0' in text
    assert sample(text, "inference_stack_worker_restarts_total") == 2
    observer.observe_node(NodeState(node="n0", ready=False, workers=()))
    assert "4711" not in house.metrics.render().decode()


async def test_the_workers_of_a_node_out_of_reach_are_not_shown_as_ready() -> None:
    house = make_house()
    observer = MetricsObserver(house.metrics)
    observer.observe_node(NodeState(node="n0", ready=True, models=(TINY,), workers=(WORKER,)))
    observer.observe_gone()
    assert "4711" not in house.metrics.render().decode()


async def test_the_gpus_of_a_node_are_shown_while_it_is_in_reach() -> None:
    house = make_house()
    observer = MetricsObserver(house.metrics)
    gpu = GpuStats(index=0, uuid="GPU-7", memory_used=5, memory_total=9, power=700.0)
    observer.observe_node(NodeState(node="n0", ready=True, gpus=(gpu,)))
    assert 'inference_stack_gpu_power_watts{gpu="0",node="n0",uuid="GPU-7"} 700.0' in house.metrics.render().decode()
    observer.observe_gone()
    assert "GPU-7" not in house.metrics.render().decode()


async def test_a_clients_request_id_is_echoed() -> None:
    async with client(make_house()) as http:
        response = await http.post(CHAT, json=chat_body(), headers={"x-request-id": "my-id.1"})
        assert response.headers["x-request-id"] == "my-id.1"
        assert int(response.headers["openai-processing-ms"]) >= 0


@pytest.mark.parametrize("bad", ["", "a b", "x" * 129, 'a"b'])
async def test_a_request_id_that_is_none_is_replaced(bad: str) -> None:
    async with client(make_house()) as http:
        response = await http.get("/live", headers={"x-request-id": bad})
    assert response.headers["x-request-id"].startswith("req_")


async def test_one_line_is_logged_per_completion(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with client(make_house()) as http:
        await http.post(CHAT, json=chat_body(max_tokens=3), headers={"x-request-id": "abc"})
    (fields,) = [record.fields for record in caplog.records if record.message == "completion ended"]  # type: ignore[attr-defined]
    assert (fields["request"], fields["finish"], fields["completion_tokens"]) == ("abc", "length", 3)
    assert fields["ttft"] <= fields["seconds"]


async def test_a_refused_submission_leaves_nothing_in_flight() -> None:
    house = make_house()
    house.dispatch.submit_refusal = unavailable("gone")
    async with client(house) as http:
        assert (await http.post(CHAT, json=chat_body(n=2))).status_code == 503
        text = (await http.get("/metrics")).text
    assert sample(text, "inference_stack_requests_in_flight") == 0


async def post(path: str, body: dict[str, Any]) -> Any:
    async with client(make_house()) as http:
        return await http.post(path, json=body)


async def test_tokenise_and_back() -> None:
    reply = (await post("/tokenize", {"model": MODEL, "prompt": "Grüße 🙂", "return_token_strs": True})).json()
    assert reply["tokens"] == TOKENIZER.encode("Grüße 🙂")
    assert reply["count"] == len(reply["token_strs"]) == len(reply["tokens"])
    assert (await post("/detokenize", {"tokens": reply["tokens"]})).json() == {"prompt": "Grüße 🙂"}


async def test_tokenise_a_conversation() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    with_prompt = (await post("/tokenize", {"messages": messages})).json()["tokens"]
    without = (await post("/tokenize", {"messages": messages, "add_generation_prompt": False})).json()["tokens"]
    assert TOKENIZER.decode(without, skip_special_tokens=False) == "<|im_start|>user\nHi<|im_end|>\n"
    assert with_prompt[: len(without)] == without and len(with_prompt) > len(without)


async def test_tokenise_wants_one_of_two() -> None:
    assert (await post("/tokenize", {"model": MODEL})).status_code == 400
    assert (await post("/detokenize", {"tokens": [10**6]})).status_code == 400
