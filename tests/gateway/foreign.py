"""A server in vLLM's dialect over a plain socket, with every way in which one can disappoint; and a wire that can be cut."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

Headers = dict[str, str]


@dataclass
class Foreign:
    """Completes any prompt of `base` tokens with `answer`, and goes on where a longer one left off. Each completion takes its
    fault from `faults`: a status, `drop`, `malformed`, `error`, `long`, `strange`, `text`, `hang`; none for an empty one."""

    answer: list[int]
    base: int = 3
    models: dict[str, int | None] = field(default_factory=lambda: {"tiny": 256})
    ids: bool = True
    named: bool = True
    list_status: int = 200
    faults: deque[str] = field(default_factory=deque)
    fault_after: int = 3
    retry_after: str = "0"
    cached: int = 2
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)
    checks: int = 0
    cut: asyncio.Event = field(default_factory=asyncio.Event)
    streaming: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.headers.append(headers)
            if " /v1/models " in head[0]:
                listed = [{"id": name, "max_model_len": context} for name, context in self.models.items()]
                self._answer(writer, self.list_status, {"data": listed})
            else:
                await self._complete(reader, writer, json.loads(body))
            await writer.drain()
            writer.close()
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.transport.abort()

    def _answer(self, writer: asyncio.StreamWriter, status: int, body: object) -> None:
        raw = json.dumps(body).encode()
        extra = f"retry-after: {self.retry_after}\r\n" if status == 429 else ""
        extra += "location: http://127.0.0.1:1/\r\n" if status == 307 else ""
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n{extra}"
        writer.write(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)

    async def _complete(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        if body["prompt"] == [0]:
            self.checks += 1
            tokens, fault = [5], ""
        else:
            self.bodies.append(body)
            tokens = self.answer[len(body["prompt"]) - self.base :][: body["max_tokens"]]
            fault = self.faults.popleft() if self.faults else ""
        if fault.isdecimal():
            problem = {"message": f"no: {fault}", "type": "t", "param": "prompt", "code": int(fault)}
            return self._answer(writer, int(fault), {"error": problem})
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n: hello\n\n")
        for index, token in enumerate(tokens):
            if fault and index == self.fault_after:
                await self._fail(fault, reader, writer)
                return None
            last = index == len(tokens) - 1
            finish = None if not last else "stop" if token == self.answer[-1] else "length"
            self._event(writer, {"choices": [self._choice(token, body, finish)]})
            await asyncio.sleep(0)
        details = {"prompt_tokens_details": {"cached_tokens": self.cached}}
        self._event(writer, {"choices": [], "usage": details})
        writer.write(b"data: [DONE]\n\n")

    def _choice(self, token: int, body: dict[str, Any], finish: str | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "text": "x", "finish_reason": finish, "logprobs": None}
        if self.ids:
            choice["token_ids"] = [token]
        if body.get("logprobs") is not None:
            name = f"token_id:{token}" if body.get("return_tokens_as_token_ids") and self.named else "x"
            top = {name: -0.5, "token_id:7": -0.25} if body["logprobs"] else {name: -0.5}
            choice["logprobs"] = {"tokens": [name], "token_logprobs": [-0.5], "top_logprobs": [top]}
        return choice

    def _event(self, writer: asyncio.StreamWriter, body: object) -> None:
        writer.write(b"data: " + json.dumps(body).encode() + b"\n\n")

    async def _fail(self, fault: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.streaming.set()
        if fault == "malformed":
            writer.write(b"data: {oops\n\n")
        elif fault == "error":
            self._event(writer, {"error": {"message": "engine died", "code": 400}})
        elif fault == "long":
            writer.write(b"data: " + b"x" * (2 << 20))
        elif fault == "strange":
            self._event(writer, {"choices": [{"text": "x", "token_ids": [10**6], "finish_reason": None}]})
        elif fault == "text":
            self._event(writer, {"choices": [{"text": "x", "finish_reason": None}]})
        elif fault == "hang":
            with suppress(ConnectionError):
                await reader.read()
            self.cut.set()
        await writer.drain()
        if fault == "drop":
            writer.transport.abort()


@asynccontextmanager
async def foreign(answer: list[int], **fields: Any) -> AsyncIterator[Foreign]:
    """A server on a loopback port."""
    made = Foreign(answer, **fields)
    server = await asyncio.start_server(made._serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()


class Wire:
    """A way to another port that can be cut: all connections break, and no new ones are made."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2])
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def open(self) -> str:
        """The URL of this end."""
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """From now on."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, back]
        await asyncio.gather(_pump(reader, back), _pump(there, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while part := await reader.read(65536):
            writer.write(part)
            await writer.drain()
    writer.close()
