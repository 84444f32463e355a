"""A lean HTTP/1.1 client over asyncio streams: one connection per request, so that what is measured is the server.

Knows chunked bodies; knows neither redirects nor proxies.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

READ_BYTES = 1 << 16


class ProtocolError(Exception):
    """The server does not speak HTTP as expected, or ended the connection inside a message."""


class Dechunker:
    """Takes the framing off a chunked body, however it is split."""

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0
        self.finished = False

    def feed(self, data: bytes) -> bytes:
        """The body bytes in `data`."""
        rest, out = self._rest + data, []
        while rest and not self.finished:
            if self._left > 2:
                piece = rest[: self._left - 2]
                out.append(piece)
                self._left -= len(piece)
                rest = rest[len(piece) :]
            elif self._left:
                skipped = min(self._left, len(rest))
                self._left -= skipped
                rest = rest[skipped:]
            else:
                line, found, after = rest.partition(b"\r\n")
                if not found:
                    break
                rest = self._size(line, after)
        self._rest = rest
        return b"".join(out)

    def _size(self, line: bytes, rest: bytes) -> bytes:
        try:
            size = int(line.split(b";")[0], 16)
        except ValueError:
            raise ProtocolError(f"not a chunk size: {line[:20]!r}") from None
        self.finished = size == 0
        self._left = size + 2
        return rest


@dataclass
class Response:
    """Status and headers of an answer whose body is still to be read."""

    status: int
    headers: Mapping[str, str]
    reader: asyncio.StreamReader

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes as they arrive."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            async for piece in self._chunked():
                yield piece
        elif "content-length" in self.headers:
            left = int(self.headers["content-length"])
            while left > 0:
                data = await self._some(min(left, READ_BYTES))
                left -= len(data)
                yield data
        else:
            while data := await self.reader.read(READ_BYTES):
                yield data

    async def _chunked(self) -> AsyncIterator[bytes]:
        frames = Dechunker()
        while not frames.finished:
            if piece := frames.feed(await self._some(READ_BYTES)):
                yield piece

    async def _some(self, limit: int) -> bytes:
        data = await self.reader.read(limit)
        if not data:
            raise ProtocolError("the connection ended inside the body")
        return data

    async def body(self) -> bytes:
        """All of it."""
        return b"".join([piece async for piece in self.chunks()])


async def _head(reader: asyncio.StreamReader) -> Response:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise ProtocolError("the connection ended before an answer") from None
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = first.split(" ", 2)
    if len(parts) < 2 or not parts[1].isdigit():
        raise ProtocolError(f"not an HTTP status: {first[:40]!r}")
    headers = dict(line.split(":", 1) for line in lines if ":" in line)
    return Response(int(parts[1]), {name.lower(): value.strip() for name, value in headers.items()}, reader)


def _message(method: str, url: str, path: str, body: bytes, api_key: str) -> bytes:
    host = urlsplit(url).netloc
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", "Accept: */*"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"Authorization: Bearer {api_key}"] if api_key else []
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def request(method: str, url: str, path: str, body: Any = None, api_key: str = "") -> AsyncIterator[Response]:
    """Send a request with a JSON body and yield the answer. Raises `OSError` and `ProtocolError`."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    context = ssl.create_default_context() if secure else None
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context)
    try:
        payload = b"" if body is None else json.dumps(body).encode()
        writer.write(_message(method, url, path, payload, api_key))
        await writer.drain()
        yield await _head(reader)
    finally:
        writer.close()


async def call(method: str, url: str, path: str, body: Any = None, api_key: str = "") -> tuple[int, Any]:
    """A request whose answer is one JSON value; None when it is anything else."""
    async with request(method, url, path, body, api_key) as response:
        data = await response.body()
    try:
        return response.status, json.loads(data)
    except ValueError:
        return response.status, None
