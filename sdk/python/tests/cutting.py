"""A small HTTP server that does what it is told: answers, cuts connections at any byte, resumes from the ids it gave out."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

WORDS = ["Grüße", " aus", " Köln", ": 你好", "🙂", " and", "\nmore", " to", " come", "."]


@dataclass
class Received:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """What a request is answered with. `cut` bytes of the body are sent, then the connection is dropped; None sends all."""

    body: bytes = b"{}"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    slices: int = 0
    hold: bool = False


def chunk(text: str) -> bytes:
    """One event's JSON."""
    return json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}, ensure_ascii=False).encode()


def events(start: int = 0, *, ids: bool = True, every: int = 1, end: str = "\n", done: bool = True) -> bytes:
    """The stream of `WORDS` from one on; every so many events carry an id, the number of words that its owner has."""
    lines: list[bytes] = []
    for number, word in enumerate(WORDS[start:], start + 1):
        lines += [b"data: " + chunk(word)]
        if ids and (number % every == 0 or number == len(WORDS)):
            lines += [f"id: {number}".encode()]
        lines += [b""]
    if done:
        lines += [b"data: [DONE]", b""]
    return b"".join(line + end.encode() for line in lines)


def stream(body: bytes | None = None, *, resumable: bool = True, **fields: Any) -> Answer:
    """A streamed answer."""
    headers = {"content-type": "text/event-stream", **({"x-resumable": "true"} if resumable else {})}
    return Answer(events() if body is None else body, headers=headers, **fields)


def refusal(status: int, code: str = "unavailable", **headers: str) -> Answer:
    """An error."""
    error = {"message": f"because of {code}", "type": "server_error", "param": "p", "code": code}
    return Answer(json.dumps({"error": error}).encode(), status, {"content-type": "application/json", **headers})


def resuming(**fields: Any) -> Callable[[Received], Answer]:
    """Goes on from the id that is sent."""
    return lambda request: stream(events(int(request.headers.get("last-event-id", "0")), **fields))


Script = Callable[[Received], Answer]


class Server:
    """Answers requests in turn from `script`; the last entry answers all that follow."""

    def __init__(self, *script: Answer | Script) -> None:
        self.script = list(script)
        self.received: list[Received] = []
        self.left = threading.Event()
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while (request := await self._request(reader)) is not None:
                self.received.append(request)
                now = self.script[min(len(self.received), len(self.script)) - 1]
                if not await self._answer(now(request) if callable(now) else now, reader, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client is gone, as clients may be
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> Received | None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Received(method, path, headers, body)

    async def _answer(self, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection can be used again."""
        streamed = answer.headers.get("content-type") == "text/event-stream"
        size = {"transfer-encoding": "chunked"} if streamed else {"content-length": str(len(answer.body))}
        lines = [f"HTTP/1.1 {answer.status} X", *(f"{n}: {v}" for n, v in {**answer.headers, **size}.items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        body = answer.body[: answer.cut]
        step = answer.slices or max(1, len(body))
        for at in range(0, len(body), step):
            part = body[at : at + step]
            writer.write(b"%x\r\n%b\r\n" % (len(part), part) if streamed else part)
            await writer.drain()
        if answer.hold:
            await reader.read(1)
            self.left.set()
        if answer.cut is not None or answer.hold:
            writer.transport.abort() if answer.hold else writer.close()
            return False
        if streamed:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


@asynccontextmanager
async def running(*script: Answer | Script) -> AsyncIterator[Server]:
    """A server on this loop."""
    server = Server(*script)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


@contextmanager
def threaded(*script: Answer | Script) -> Iterator[Server]:
    """A server on a loop of its own."""
    loop = asyncio.new_event_loop()
    server = Server(*script)
    listener = loop.run_until_complete(asyncio.start_server(server.serve, "127.0.0.1", 0))
    server.port = listener.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        listener.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
