"""Streams over a real socket: silence, departures, failures, and what goes out in one write."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import httpx
import pytest

from inference_stack.core.errors import deadline_exceeded, numerical_fault
from tests.gateway.house import TEXTS, Live, chat_body, client, live, make_house, text_body

CHAT = "/v1/chat/completions"


def send(server: Live, body: dict[str, Any], path: str = CHAT) -> socket.socket:
    """A request on a socket of its own, of which nothing was read yet."""
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=20)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    received = b""
    while mark not in received:
        part = connection.recv(65536)
        assert part, received
        received += part
    return received


async def until(condition: Any) -> None:
    """Let the loop turn until a condition holds; the test's time limit is the only clock."""
    while not condition():
        await asyncio.sleep(0.001)


def wait_for(server: Live, condition: Any) -> None:
    asyncio.run_coroutine_threadsafe(until(condition), server.loop).result(20)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_aborts_every_choice(stream: bool, n: int) -> None:
    with live() as server:
        server.house.script.hold_after = 2
        connection = send(server, chat_body(stream=stream, n=n))
        wait_for(server, lambda: server.house.dispatch.emitted == 2 * n)
        connection.close()
        wait_for(server, lambda: len(server.house.dispatch.aborted) == n)
        assert sorted(server.house.dispatch.aborted) == [request.id for request in server.house.dispatch.requests]


def test_a_client_that_leaves_the_queue_aborts_too() -> None:
    with live() as server:
        server.house.script.hold_after = 0
        connection = send(server, chat_body(stream=True))
        server.wait(server.house.dispatch.holding)
        connection.close()
        wait_for(server, lambda: len(server.house.dispatch.aborted) == 1)


def test_nothing_is_left_behind_by_clients_that_leave() -> None:
    with live() as server:
        server.house.script.hold_after = 2
        for stream in (True, False):
            connection = send(server, chat_body(stream=stream, n=2))
            wait_for(server, lambda: server.house.dispatch.emitted >= 4)
            connection.close()
            server.house.dispatch.emitted = 0
        wait_for(server, lambda: len(server.house.dispatch.aborted) == 4)
        wait_for(server, lambda: not [task for task in asyncio.all_tasks() if "run" in str(task.get_coro())][1:])
        assert 'requests_in_flight{model="tiny"} 0.0' in server.house.metrics.render().decode()


def test_silence_is_filled_with_comments_even_in_the_queue() -> None:
    with live(comment_seconds=0.02) as server:
        server.house.script.hold_after = 0
        connection = send(server, chat_body(stream=True))
        received = read_until(connection, b": waiting\n")
        assert b"200 OK" in received and b"data:" not in received
        server.call(server.house.script.go.set)
        received = read_until(connection, b"[DONE]")
        assert b"The" in received
        connection.close()


def test_what_is_ready_at_once_goes_out_in_one_chunk() -> None:
    with live() as server:
        server.house.script.delta_tokens = 100
        connection = send(server, chat_body(stream=True))
        body = read_until(connection, b"\r\n0\r\n\r\n").partition(b"\r\n\r\n")[2]
        size, _, rest = body.partition(b"\r\n")
        assert rest[int(size, 16) :] == b"\r\n0\r\n\r\n"
        assert rest.count(b"data: ") == 4  # role, content, reason, end
        connection.close()


def test_the_server_goes_on_after_a_client_that_never_reads() -> None:
    with live() as server:
        connection = send(server, chat_body(stream=True, n=3))
        answer = httpx.post(server.url + CHAT, json=chat_body()).json()
        assert answer["choices"][0]["message"]["content"] == TEXTS[0]
        connection.close()


@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_before_the_first_token_has_its_status(stream: bool) -> None:
    house = make_house()
    house.script.error_after, house.script.error = 0, deadline_exceeded()
    async with client(house) as http:
        response = await http.post(CHAT, json=chat_body(stream=stream))
    assert response.status_code == 408
    assert response.json()["error"]["code"] == "deadline_exceeded"


async def test_an_error_in_mid_stream_is_one_event_and_the_end() -> None:
    house = make_house()
    house.script.error_after, house.script.error = 2, numerical_fault()
    async with client(house) as http:
        response = await http.post(CHAT, json=chat_body(stream=True))
    assert response.status_code == 200
    *_, last = [line for line in response.text.splitlines() if line]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "numerical_fault"
    assert "[DONE]" not in response.text
    assert response.text.count("error") == 2  # the key, and the type


async def test_one_choice_that_fails_ends_the_others() -> None:
    house = make_house()
    house.script.error_after, house.script.error = 2, numerical_fault()
    async with client(house) as http:
        response = await http.post(CHAT, json=chat_body(n=3))
    assert response.status_code == 500
    assert len(house.dispatch.requests) == 3
    assert house.dispatch.settled()


@pytest.mark.parametrize("stream", [True, False])
async def test_an_unexpected_failure_is_a_500_with_the_requests_id(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    house = make_house()
    house.script.crash_after = 0
    async with client(house) as http:
        response = await http.post(CHAT, json=chat_body(stream=stream), headers={"x-request-id": "abc"})
    assert response.status_code == 500
    assert "abc" in response.json()["error"]["message"]
    assert "Traceback" in caplog.text and "TypeError" in caplog.text


async def test_a_deadline_that_passes_in_the_queue_is_a_408() -> None:
    house = make_house()
    house.script.hold_after = 0
    async with client(house) as http:
        response = await http.post(CHAT, json=chat_body(), headers={"x-deadline-ms": "20"})
    assert response.status_code == 408
    assert house.dispatch.aborted == [house.dispatch.requests[0].id]


async def test_a_deadline_for_the_first_token_is_met_by_a_token() -> None:
    house = make_house()
    house.script.hold_after = 1
    async with client(house) as http:
        asking = asyncio.create_task(http.post(CHAT, json=chat_body(), headers={"x-ttft-deadline-ms": "60000"}))
        await house.dispatch.holding.wait()
        house.script.go.set()
        assert (await asking).status_code == 200


def test_a_body_beyond_the_limit_is_refused_while_it_is_being_sent() -> None:
    with live(max_body_mb=1) as server:
        response = httpx.post(server.url + CHAT, json=chat_body(user="x" * 4_000_000))
        assert response.status_code == 413
        assert httpx.post(server.url + CHAT, json=chat_body()).status_code == 200


def test_text_streams_work_over_a_socket() -> None:
    with live() as server:
        connection = send(server, text_body(stream=True), "/v1/completions")
        received = read_until(connection, b"[DONE]")
        assert received.count(b"text_completion") == len(server.house.script.answers[0])
        connection.close()
