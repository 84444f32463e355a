"""Sending an answer: as server-sent events while it is made, or as one JSON object; and noticing that nobody listens.

    engine ─▶ choice.run ─▶ sink ─▶ outbox ─▶ writer ─▶ socket
                                      └ whatever is ready at once goes out in one write

The status line waits for the first news, so that a request which fails in the queue gets its proper status.
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Send

from inference_stack.core.errors import ErrorInfo, InferenceError
from inference_stack.gateway.body import disconnected
from inference_stack.gateway.choice import Choice, Piece
from inference_stack.gateway.context import Gateway
from inference_stack.gateway.errors import error_body, internal_error
from inference_stack.gateway.job import Job, run
from inference_stack.gateway.render import COMMENT, DONE, Renderer
from inference_stack.gateway.replies import encode

STREAM_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Gone(Exception):
    """The client closed the connection; what ran for it has been stopped."""


async def answer(gateway: Gateway, job: Job, renderer: Renderer, receive: Receive) -> Response:
    """The whole answer as one object. Raises `InferenceError`, and `Gone` when the client left before it was ready."""
    pieces: dict[int, list[Piece]] = {choice.index: [] for choice in job.choices}

    def collect(choice: Choice, piece: Piece) -> None:
        pieces[choice.index].append(piece)

    work = asyncio.create_task(run(gateway, job, collect))
    watch = asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise Gone
        work.result()
    finally:
        job.abort()
        await _cancel(work, watch)
    return Response(encode(renderer.whole(pieces)), media_type="application/json")


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    """End tasks whose outcome no longer matters."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class EventStream:
    """One answer as server-sent events."""

    def __init__(self, gateway: Gateway, job: Job, renderer: Renderer, send: Send) -> None:
        self._gateway = gateway
        self._job = job
        self._renderer = renderer
        self._send = send
        self._opened: set[int] = set()
        self._outbox: list[bytes] = []
        self._ready = asyncio.Event()
        self._started = False
        self._loop = asyncio.get_running_loop()
        self._last_write = self._loop.time()
        self._patience = gateway.config.comment_seconds
        self._timer: asyncio.TimerHandle | None = None

    async def serve(self, receive: Receive) -> None:
        """Send everything. Raises `Gone` when the client leaves, and `InferenceError` only while nothing was sent."""
        work = asyncio.create_task(run(self._gateway, self._job, self._sink))
        watch = asyncio.create_task(disconnected(receive))
        for task in (work, watch):
            task.add_done_callback(lambda _: self._ready.set())
        self._watch_silence()
        try:
            await self._write_until_done(work, watch)
            await self._finish(work)
        finally:
            self._job.abort()
            if self._timer is not None:
                self._timer.cancel()
            await _cancel(work, watch)

    def _watch_silence(self) -> None:
        """Fill a long silence with a comment. One timer looks when a comment would be due; tokens need not touch it."""
        if not self._patience:
            return
        due = self._last_write + self._patience
        if due <= self._loop.time():
            self._outbox.append(COMMENT)
            self._ready.set()
            due = self._loop.time() + self._patience
        self._timer = self._loop.call_at(due, self._watch_silence)

    def _sink(self, choice: Choice, piece: Piece) -> None:
        if choice.index not in self._opened:
            self._opened.add(choice.index)
            self._outbox.append(self._renderer.opening(choice))
        self._outbox.append(self._renderer.piece(choice, piece))
        self._ready.set()

    async def _write_until_done(self, work: asyncio.Task[None], watch: asyncio.Task[None]) -> None:
        while True:
            await self._ready.wait()
            if watch.done():
                raise Gone
            if work.done():
                return
            self._ready.clear()
            await self._write(self._take())

    def _take(self) -> bytes:
        """Everything that is ready to be sent."""
        ready = b"".join(self._outbox)
        self._outbox.clear()
        return ready

    async def _finish(self, work: asyncio.Task[None]) -> None:
        error = self._error(work)
        if error is None:
            await self._write(self._take() + self._renderer.closing() + DONE, more=False)
        elif self._started:
            await self._write(self._take() + b"data: " + error_body(error) + b"\n\n", more=False)
        else:
            raise InferenceError(error)

    def _error(self, work: asyncio.Task[None]) -> ErrorInfo | None:
        problem = work.exception()
        if problem is None:
            return None
        if isinstance(problem, InferenceError):
            return problem.info
        fields = {"request": self._job.request_id}
        self._gateway.log.error("a stream failed", exc_info=problem, extra={"fields": fields})
        return internal_error(self._job.request_id)

    async def _write(self, body: bytes, more: bool = True) -> None:
        if not body and more:
            return
        if not self._started:
            self._started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)})
        self._last_write = self._loop.time()
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
