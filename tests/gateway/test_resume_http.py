"""Resuming over real sockets: our client through two gateways, stock clients that know nothing of ids, connections left behind."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import inference_stack_client as sdk
import openai
import pytest

from inference_stack.core.errors import unavailable
from tests.gateway.house import MODEL, TEXTS, Live, chat_body, live
from tests.gateway.resuming import CHAT, SECRET, encoded, kept, parsed, streamed, told

HI: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def here() -> Iterator[Live]:
    with live(SECRET) as found:
        yield found


@pytest.fixture
def there() -> Iterator[Live]:
    with live(SECRET) as found:
        yield found


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def wait_for(server: Live, condition: Any) -> None:
    asyncio.run_coroutine_threadsafe(until(condition), server.loop).result(20)


def raw(server: Live, body: bytes, last_id: str = "") -> socket.socket:
    """A request on a connection of its own."""
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=20)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    connection.sendall(f"{head}last-event-id: {last_id}\r\n\r\n".encode() + body)
    return connection


def read_words(connection: socket.socket, words: int) -> str:
    """The body until so many events have come, without its framing."""
    received = b""
    while received.count(b"\nid: ") < words or not received.endswith(b"\n\r\n"):
        part = connection.recv(65536)
        assert part, received
        received += part
    lines = received.partition(b"\r\n\r\n")[2].split(b"\r\n")
    return b"".join(lines[1::2]).decode()


def to_the_end(connection: socket.socket, mark: bytes = b"no such mark") -> bytes:
    """Everything until the server closes the connection, or until the mark."""
    received = b""
    while mark not in received and (part := connection.recv(65536)):
        received += part
    return received


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_our_client_goes_on_when_a_gateway_ends_its_streams(here: Live, there: Live, tokens: int) -> None:
    """The engine fails as it does for a gateway that loses all nodes; the error is one that passes."""
    here.house.script.error_after, here.house.script.error = tokens, unavailable("gone").info
    with sdk.Client([here.url, there.url]) as client:
        events = list(
            client.chat.completions.create(
                model=MODEL, messages=HI, seed=1, stream=True, stream_options={"include_usage": True}
            )
        )
    text = "".join(event.choices[0].delta.get("content", "") for event in events if event.choices)
    assert text == TEXTS[1]
    assert len({event.id for event in events}) == 1
    assert [event.usage.completion_tokens for event in events if event.usage] == [len(there.house.script.answers[1])]
    assert len(there.house.dispatch.requests) == 1


async def test_the_asynchronous_client_too(here: Live, there: Live) -> None:
    here.house.script.error_after, here.house.script.error = 3, unavailable("gone").info
    async with sdk.AsyncClient([here.url, there.url]) as client:
        found = await client.completions.create(
            model=MODEL, prompt="One", seed=2, n=2, max_tokens=100, stream=True, logprobs=1
        )
        texts = ["", ""]
        async for event in found:
            texts[event.choices[0].index] += event.choices[0].text
    assert texts == [TEXTS[2], TEXTS[0]]


def test_our_client_tells_of_a_divergence(here: Live, there: Live) -> None:
    here.house.script.error_after, here.house.script.error = 5, unavailable("gone").info
    there.house.script.answers[0][1] += 1
    with sdk.Client([here.url, there.url]) as client, pytest.raises(sdk.ResumeDivergedError):
        list(client.chat.completions.create(model=MODEL, messages=HI, seed=0, stream=True))


async def test_a_connection_that_is_cut_goes_on_elsewhere(here: Live, there: Live) -> None:
    here.house.script.hold_after = 6
    body = encoded(chat_body())
    connection = raw(here, body)
    had = kept(parsed(read_words(connection, 4)))
    connection.close()
    rest = await streamed(there.house, CHAT, body, had[-1].id)
    assert told([*had, *rest], 0).text == TEXTS[0]


def test_who_comes_back_to_the_same_gateway_takes_the_place_of_a_connection_left_behind(here: Live) -> None:
    here.house.script.hold_after = 6
    body = encoded(chat_body())
    left = raw(here, body)
    had = kept(parsed(read_words(left, 3)))
    again = raw(here, body, str(had[-1].id))
    wait_for(here, lambda: len(here.house.dispatch.requests) == 2)
    first, second = here.house.dispatch.requests
    assert here.house.dispatch.aborted == [first.id] == [second.id]
    here.call(here.house.script.go.set)
    assert b"[DONE]" in to_the_end(again, b"[DONE]")
    assert b"[DONE]" not in to_the_end(left)
    wait_for(here, lambda: not here.house.app.state.gateway.streams)
    left.close()
    again.close()


def test_openais_client_is_unaffected_by_ids_and_comments() -> None:
    """A comment after an id must not look like an empty event to it."""
    with live(SECRET, comment_seconds=0.02) as server:
        server.house.script.hold_after = 2
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as ai:
            chunks = ai.chat.completions.create(model=MODEL, messages=HI, seed=0, stream=True)
            found = [next(chunks), next(chunks), next(chunks)]
            connection = raw(server, encoded(chat_body()))
            received = b""
            while b": waiting" not in received.partition(b"\nid: ")[2]:
                received += connection.recv(65536)
            connection.close()
            server.call(server.house.script.go.set)
            found += list(chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in found) == TEXTS[0]


def test_our_client_is_unaffected_by_comments() -> None:
    with live(SECRET, comment_seconds=0.02) as server, sdk.Client(server.url, idle_seconds=5) as client:
        server.house.script.hold_after = 2
        found = iter(client.chat.completions.create(model=MODEL, messages=HI, seed=0, stream=True))
        text = next(found).choices[0].delta.content
        server.call(server.house.script.go.set)
        text += "".join(event.choices[0].delta.get("content", "") for event in found)
    assert text == TEXTS[0]


def test_ids_survive_a_plain_http_client(here: Live) -> None:
    with httpx.stream("POST", here.url + CHAT, json=json.loads(encoded(chat_body()))) as response:
        events = parsed("".join(response.iter_text()))
    assert events[-1].data == "[DONE]"
    assert all(event.id for event in kept(events)[-1:])
