"""The bare ASGI pump of server-sent events: uvicorn, httptools and uvloop, ready-made bytes, nothing else. It is the limit.

    burst    every event as fast as `send` takes it (uvloop joins what one turn of its loop wrote): the proxies' upstream
    stepped  one turn of the loop, so one write, for each event
    timed    one event a stream and tick, as an engine's steps make them

Answers any POST with the same completion; looks at no request. GETs get what proxies ask of an upstream.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import uvicorn

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

MODEL = "smollm2"
WORDS = ("hematical", " river", " the", " gently", " stone", " light", " of", " again")
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ],
}


def _event(choices: Sequence[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
    chunk = {
        "id": "chatcmpl-6cbae951f6b0465279e40d0b",
        "object": "chat.completion.chunk",
        "created": 1795386976,
        "model": MODEL,
        "system_fingerprint": "simulated-h200-smollm2-1e333836df584967",
        "choices": choices,
        "usage": usage,
    }
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def _choice(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


def events(tokens: int, prompt_tokens: int = 128) -> list[bytes]:
    """A streamed chat completion, event by event, with the fields and so about the size of ours."""
    opening = _event([_choice({"role": "assistant", "content": "", "refusal": None})])
    content = [_event([_choice({"content": WORDS[i % len(WORDS)]})]) for i in range(tokens)]
    total = prompt_tokens + tokens
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": total}
    ending = _event([_choice({}, "length")]) + _event([], usage) + b"data: [DONE]\n\n"
    return [opening + content[0], *content[1:], ending]


class Ticks:
    """Wakes everybody who waits, every so many seconds, while anybody waits."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = asyncio.Event()
        self._armed = False

    async def wait(self) -> None:
        """Until the next tick."""
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_later(self._seconds, self._tick)
        await self._next.wait()

    def _tick(self) -> None:
        self._armed = False
        due, self._next = self._next, asyncio.Event()
        due.set()


class Pump:
    """The ASGI application."""

    def __init__(self, mode: str, tokens: int, tick: float) -> None:
        self._bodies = events(tokens)
        self._ticks = Ticks(tick)
        self._between = {"burst": None, "stepped": self._turn, "timed": self._ticks.wait}[mode]

    async def _turn(self) -> None:
        await asyncio.sleep(0)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        if scope["method"] == "GET":
            await _tell(scope["path"], send)
            return
        while (await receive()).get("more_body"):
            pass
        await send(START)
        for body in self._bodies:
            if self._between is not None:
                await self._between()
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _tell(path: str, send: Send) -> None:
    about = (
        {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        if path == "/v1/models"
        else {"model_path": MODEL}
    )
    body = json.dumps(about).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def listener(port: int) -> socket.socket:
    """A socket that processes share the port by."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(2048)
    return sock


def _more_processes(count: int) -> None:
    """Fork until there are `count`; a child ends when its parent does."""
    for _ in range(count - 1):
        if os.fork() == 0:
            ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)
            return


def main() -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m bench.gateway.pump")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mode", choices=("burst", "stepped", "timed"), default="stepped")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--tick-ms", type=float, default=1.3, help="between events of a timed stream")
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    _more_processes(asked.processes)
    app = Pump(asked.mode, asked.tokens, asked.tick_ms / 1000)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", lifespan="off", log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener(asked.port)])


if __name__ == "__main__":
    main()
