"""A tiny OpenAI-like server in a thread, whose every answer a test can replace."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass(frozen=True)
class Answer:
    """What to send: a status, and pieces that each go out in one write. `whole`: the body is ended as HTTP wants it."""

    pieces: list[bytes]
    status: int = 200
    whole: bool = True


def event(payload: Any) -> bytes:
    return b"data: " + (payload if isinstance(payload, bytes) else json.dumps(payload).encode()) + b"\n\n"


def stream(texts: list[str], usage: dict[str, Any] | None = None, chat: bool = False) -> Answer:
    """A streamed completion of these texts."""
    choices = [{"delta": {"content": text}} if chat else {"text": text} for text in texts]
    events = [event({"choices": [choice]}) for choice in choices]
    events += [event({"choices": [], "usage": usage})] if usage else []
    return Answer([*events, event(b"[DONE]")])


def completion(body: dict[str, Any]) -> Answer:
    """As many tokens as were asked for, and their usage."""
    prompt = body.get("prompt") or body["messages"][-1]["content"]
    length = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
    usage = {"prompt_tokens": length, "completion_tokens": body["max_tokens"]}
    return stream([f"t{index} " for index in range(body["max_tokens"])], usage, chat="messages" in body)


def tokens(body: dict[str, Any]) -> Answer:
    """One token per word; `court` is two."""
    words = body["prompt"].split()
    ids = [number for word in words for number in ([1, 2] if word == "court" else [100 + sum(word.encode())])]
    return Answer([json.dumps({"tokens": ids, "count": len(ids)}).encode()])


def models(body: dict[str, Any]) -> Answer:
    return Answer([json.dumps({"data": [{"id": "first"}, {"id": "second"}]}).encode()])


@dataclass
class FakeServer:
    """Answers by path, and remembers what it was asked."""

    url: str = ""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    answers: dict[str, Callable[[dict[str, Any]], Answer]] = field(
        default_factory=lambda: {
            "/v1/models": models,
            "/tokenize": tokens,
            "/v1/completions": completion,
            "/v1/chat/completions": completion,
        }
    )
    inside: int = 0
    most_inside: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        lengths = [int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length")]
        body = json.loads(await reader.readexactly(lengths[0])) if lengths and lengths[0] else {}
        self.asked.append((path, body))
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        await self.send(self.answers[path](body) if path in self.answers else Answer([b"{}"], 404), writer)
        self.inside -= 1
        writer.close()

    async def send(self, answer: Answer, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {answer.status} X\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for piece in answer.pieces:
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)
        if answer.whole:
            writer.write(b"0\r\n\r\n")
        await writer.drain()

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for asked, body in self.asked if asked == path]


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A running fake server."""
    server, loop = FakeServer(), asyncio.new_event_loop()
    listening = loop.run_until_complete(asyncio.start_server(server.handle, "127.0.0.1", 0))
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield server
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    listening.close()
    loop.close()
