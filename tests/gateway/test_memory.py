"""What an answer leaves behind: nothing that waits for Python's collector of cycles, however the answer ended."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from inference_stack.core.errors import numerical_fault
from tests.gateway.house import House, chat_body, client, live, make_house, text_body
from tests.gateway.resuming import CHAT, TEXT, encoded, sharing, streamed
from tests.gateway.test_streaming import wait_for


@contextmanager
def without_cycles() -> Iterator[None]:
    """Fails when what happens inside leaves objects of ours to the collector."""
    gc.collect()
    gc.disable()
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = Counter(type(one).__qualname__ for one in gc.garbage if _ours(one))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left


def _ours(one: object) -> bool:
    return type(one).__module__.startswith("inference_stack")


def run(work: Coroutine[Any, Any, None]) -> None:
    with without_cycles():
        asyncio.run(work)


async def post(house: House, path: str, body: dict[str, Any], status: int = 200) -> str:
    async with client(house) as http:
        answer = await http.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.text


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("path", "body"), [(CHAT, chat_body), (TEXT, text_body)])
def test_an_answer_leaves_nothing_to_the_collector(path: str, body: Any, n: int, stream: bool) -> None:
    house = make_house()
    run(_answered(house, path, body(stream=stream, n=n)))


async def _answered(house: House, path: str, body: dict[str, Any]) -> None:
    text = await post(house, path, body)
    assert ("[DONE]" in text) == body["stream"]
    assert len(house.dispatch.requests) == body["n"]


def test_an_answer_that_ends_at_a_stop_string_leaves_nothing_to_the_collector() -> None:
    house = make_house()
    run(_stopped(house))


async def _stopped(house: House) -> None:
    assert '"finish_reason":"stop"' in await post(house, CHAT, chat_body(stream=True, stop="fox"))
    assert house.dispatch.aborted


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_fails_leaves_nothing_to_the_collector(after: int, stream: bool) -> None:
    house = make_house()
    house.script.error_after, house.script.error = after, numerical_fault()
    run(_failed(house, stream, 200 if stream and after else 500))


async def _failed(house: House, stream: bool, status: int) -> None:
    assert numerical_fault().code in await post(house, CHAT, chat_body(stream=stream), status)


def test_a_refused_request_leaves_nothing_to_the_collector() -> None:
    house = make_house()
    run(_refused(house))


async def _refused(house: House) -> None:
    await post(house, CHAT, chat_body(model="none"), 404)
    await post(house, CHAT, chat_body(n=0), 400)


def test_a_client_that_leaves_leaves_nothing_to_the_collector() -> None:
    with without_cycles(), live() as server:
        server.house.script.hold_after = 2
        for stream in (True, False):
            body = json.dumps(chat_body(stream=stream)).encode()
            connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=20)
            head = (
                f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            )
            connection.sendall(f"{head}\r\n".encode() + body)
            server.wait(server.house.dispatch.holding)
            server.house.dispatch.holding.clear()
            connection.close()
            wait_for(server, lambda expected=1 + (not stream): len(server.house.dispatch.aborted) == expected)


def test_a_resumed_stream_leaves_nothing_to_the_collector() -> None:
    house = sharing()
    run(_resumed(house))


async def _resumed(house: House) -> None:
    body = encoded(chat_body())
    events = await streamed(house, CHAT, body)
    first = next(event for event in events if event.id is not None)
    rest = await streamed(house, CHAT, body, first.id)
    assert len(house.dispatch.requests) == 2 and rest[-1].data == "[DONE]"
