"""The load generator against a server of a few lines that answers what it is told, cut wherever it is told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bench.gateway import generator
from bench.gateway.generator import MARK, Shot, fire

pytestmark = pytest.mark.skipif(generator.compiler() is None, reason="no C compiler")

Reply = Callable[[bytes, int], list[bytes] | None]
"""From a request's body and its number on the connection to the pieces of the answer, each written alone. None closes at once."""

TOKENS = 3
USAGE = {"prompt_tokens": 7, "completion_tokens": TOKENS, "total_tokens": 10}


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("load")
    built = generator.program(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator, "program", lambda: built)
        yield


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply: Reply) -> None:
    number = 0
    while head := await reader.readuntil(b"\r\n\r\n"):
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        pieces = reply(await reader.readexactly(length), number)
        number += 1
        for piece in pieces or ():
            writer.write(piece)
            await asyncio.sleep(0)
        if pieces is None or b"connection: close" in b"".join(pieces):
            writer.close()
            return


@contextmanager
def server(reply: Reply) -> Iterator[int]:
    """Answers on a port of its own, in a thread of its own."""
    ready: Future[int] = Future()
    over = threading.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _answer(reader, writer, reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def serve() -> None:
        async with await asyncio.start_server(accept, "127.0.0.1", 0) as listening:
            ready.set_result(listening.sockets[0].getsockname()[1])
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        yield ready.result(10)
    finally:
        over.set()
        thread.join(10)


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def content(text: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}}], "usage": None})


DONE = b"data: [DONE]\n\n"
STREAM = (
    content("")
    + content("eins")
    + content('"content":"x"')
    + content("\u00fc\u2713")
    + event({"choices": [], "usage": USAGE})
    + DONE
)


def chunked(stream: bytes, size: int) -> bytes:
    """As HTTP's chunks of `size` bytes."""
    parts = (stream[at : at + size] for at in range(0, len(stream), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def whole(stream: bytes = STREAM, size: int = 100, more: bytes = b"") -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" + more
    return head + b"transfer-encoding: chunked\r\n\r\n" + chunked(stream, size)


def cut(answer: bytes, size: int) -> list[bytes]:
    return [answer[at : at + size] for at in range(0, len(answer), size)]


def shoot(port: int, **changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {"requests": 4, "concurrency": 2, "seconds": 20.0, "tokens": TOKENS, "timeout": 10.0}
    return fire(Shot(port=port, body=json.dumps({"prompt": MARK}), **{**plain, **changes}))


def asked(answer: bytes, **changes: Any) -> dict[str, Any]:
    """The account of a few requests that are all answered like this."""
    with server(lambda body, number: [answer]) as port:
        return shoot(port, **changes)


@pytest.mark.parametrize("chunk", [1, 5, 33, 10_000])
@pytest.mark.parametrize("piece", [1, 3, 50, 10_000])
def test_answers_cut_anywhere_are_whole(chunk: int, piece: int) -> None:
    with server(lambda body, number: cut(whole(size=chunk), piece)) as port:
        found = shoot(port)
    assert (found["ok"], found["errors"], found["first_error"]) == (4, 0, "")
    assert (found["content_events"], found["completion_tokens"], found["prompt_tokens"]) == (12, 12, [7, 7])


def test_every_event_is_timed() -> None:
    found = asked(whole())
    assert (found["ttft_ms"]["n"], found["gap_ms"]["n"], found["e2e_ms"]["n"], found["events"]) == (4, 8, 4, 24)
    assert 0 < found["ttft_ms"]["p50"] <= found["e2e_ms"]["max"]


def test_lines_may_end_with_carriage_returns_and_hold_comments() -> None:
    stream = b": hello\r\n\r\nevent: x\rid: 1\r" + STREAM.replace(b"\n", b"\r\n")
    assert asked(whole(stream, size=3))["ok"] == 4


def test_connections_are_kept_and_used_again() -> None:
    assert asked(whole())["connections"] == {"opened": 2, "peak": 2, "retried": 0}


def test_a_server_that_closes_is_dialled_again() -> None:
    found = asked(whole(more=b"connection: close\r\n"))
    assert (found["ok"], found["connections"]["opened"]) == (4, 4)


def test_each_request_has_its_number() -> None:
    bodies: list[bytes] = []

    def reply(body: bytes, number: int) -> list[bytes]:
        bodies.append(body)
        return [whole()]

    with server(reply) as port:
        shoot(port)
    assert sorted(json.loads(body)["prompt"] for body in bodies) == ["00000000", "00000001", "00000002", "00000003"]


def test_an_answer_without_usage_is_counted_by_its_events() -> None:
    found = asked(whole(content("a") + content("b") + content("c") + DONE))
    assert (found["ok"], found["completion_tokens"]) == (4, 12)


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (whole(STREAM.removesuffix(DONE)), "no_done"),
        (whole(STREAM.removesuffix(DONE) + event({"error": {"message": "no"}})), "error_event"),
        (whole(content("a") + DONE), "wrong_tokens"),
        (whole(STREAM.replace(b'"completion_tokens": 3', b'"completion_tokens": 2')), "wrong_tokens"),
        (whole(STREAM + content("late")), "protocol"),
        (whole().replace(b"HTTP/1.1 200", b"HTTP/1.1 4x4"), "protocol"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "protocol"),
        (b"HTTP/1.1 429 No\r\ncontent-length: 4\r\n\r\nbusy", "status"),
        (b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", "status"),
    ],
)
def test_a_bad_answer_is_an_error_of_its_kind(answer: bytes, failure: str) -> None:
    found = asked(answer)
    assert (found["ok"], found["errors"], found["failed"][failure]) == (0, 4, 4)
    assert found["first_error"].startswith(failure)


def test_statuses_are_counted() -> None:
    assert asked(b"HTTP/1.1 429 No\r\ncontent-length: 4\r\n\r\nbusy")["status"] == {"429": 4}


def test_the_first_error_tells_what_the_server_said() -> None:
    assert "busy" in asked(b"HTTP/1.1 429 No\r\ncontent-length: 4\r\n\r\nbusy")["first_error"]


def test_an_answer_that_breaks_off_is_an_error() -> None:
    broken = whole(more=b"x: connection: close\r\n")[:200]
    found = asked(broken)
    assert (found["ok"], found["failed"]["closed_early"]) == (0, 4)


def test_a_kept_connection_closed_under_a_request_is_tried_once_more() -> None:
    with server(lambda body, number: None if number == 1 else [whole()]) as port:
        found = shoot(port, concurrency=1)
    assert (found["ok"], found["errors"], found["connections"]["retried"]) == (4, 0, 3)


def test_a_new_connection_closed_without_an_answer_is_an_error() -> None:
    with server(lambda body, number: None) as port:
        assert shoot(port)["failed"]["closed_early"] == 4


def test_an_answer_that_never_ends_is_given_up() -> None:
    found = asked(whole()[:150], timeout=0.3)
    assert (found["ok"], found["failed"]["timeout"]) == (0, 4)


def test_nobody_listening_is_an_error_of_each_request() -> None:
    with server(lambda body, number: [whole()]) as port:
        pass
    assert shoot(port)["failed"]["connect"] == 4


def test_an_open_loop_sends_what_is_due() -> None:
    found = asked(whole(), concurrency=0, rate=200.0, requests=40)
    assert (found["sent"], found["ok"]) == (40, 40)


def test_arrivals_are_the_same_for_a_seed() -> None:
    once, again, other = (asked(whole(), concurrency=0, rate=400.0, requests=20, seed=seed) for seed in (1, 1, 2))
    assert once["offered_per_s"] == again["offered_per_s"] != other["offered_per_s"]


def test_it_says_what_it_needs() -> None:
    with pytest.raises(RuntimeError, match="--body FILE and either --rate"):
        shoot(1, concurrency=0)


def test_no_compiler_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert generator.compiler() is None
