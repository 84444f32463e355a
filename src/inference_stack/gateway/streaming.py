"""Sending an answer: as server-sent events while it is made, or as one JSON object; and noticing that nobody listens.

    dispatcher ─▶ choice.feed ─▶ sink ─▶ outbox ─▶ writer ─▶ socket
                                            └ whatever is ready at once goes out in one write

The status line waits for the first news, so that a request which fails in the queue gets its proper status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Send

from inference_stack.core.errors import INVALID_REQUEST, ErrorInfo, InferenceError
from inference_stack.gateway.body import disconnected
from inference_stack.gateway.choice import Choice, Piece
from inference_stack.gateway.context import Gateway
from inference_stack.gateway.errors import error_body, internal_error
from inference_stack.gateway.job import Job, submit
from inference_stack.gateway.render import COMMENT, DONE, Renderer
from inference_stack.gateway.replies import encode

STREAM_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
RESUMABLE: Final = (b"x-resumable", b"true")
"""A promise of ids: an event may be repeated to a client that comes back until an id has come with it or after it."""

MAX_UNREAD_BYTES: Final = 8 << 20
"""Of one answer that its client does not read; then it is ended, so that neither memory nor an engine works for nobody."""


class Gone(Exception):
    """The client closed the connection; what ran for it has been stopped."""


async def answer(gateway: Gateway, job: Job, renderer: Renderer, receive: Receive) -> Response:
    """The whole answer as one object. Raises `InferenceError`, and `Gone` when the client left before it was ready."""
    pieces: dict[int, list[Piece]] = {}
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    problems: list[Exception] = []

    def over(problem: Exception | None) -> None:
        if not ended.done():
            problems.extend([problem] if problem is not None else [])
            ended.set_result(None)

    def collect(choice: Choice, piece: Piece) -> None:
        pieces.setdefault(choice.index, []).append(piece)

    running = submit(gateway, job, collect, over)
    watch = _watch(receive, lambda: over(Gone()))
    try:
        await ended
        if problems:
            raise problems.pop()  # what is raised holds this frame, which must not hold it in turn
    finally:
        running.stop()
        watch.cancel()
    for choice in job.choices:
        pieces.setdefault(choice.index, [])
    return Response(encode(renderer.whole(pieces)), media_type="application/json")


def _watch(receive: Receive, heard: Callable[[], None]) -> asyncio.Task[None]:
    """A task that ends when the client has gone, or when it is cancelled; `heard` is called then. Nobody need wait for its end."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # looked at; a connection that breaks is a client that left
        heard()

    task = asyncio.create_task(disconnected(receive))
    task.add_done_callback(ended)
    return task


class Bell:
    """Wakes one task that waits for it; what is rung while nobody waits is heard by the next who does. Once per token of every
    stream, where `asyncio.Event` costs several times as much."""

    __slots__ = ("_loop", "_rang", "_waiter")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._rang = False

    def ring(self) -> None:
        """Wake the waiter."""
        if not self._rang:
            self._rang = True
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    async def rung(self) -> None:
        """Return once it has been rung since the last time."""
        if not self._rang:
            self._waiter = self._loop.create_future()
            await self._waiter
        self._rang = False


class EventStream:
    """One answer as server-sent events."""

    def __init__(self, gateway: Gateway, job: Job, renderer: Renderer, send: Send) -> None:
        self._gateway = gateway
        self._job = job
        self._renderer = renderer
        self._send = send
        self._progress = job.progress
        self._streams = gateway.streams
        self._begun: set[int] = set()
        self._outbox: list[bytes] = []
        self._bell = Bell()
        self._comment_due = False
        self._started = False
        self._over = False
        self._unread = 0
        self._problem: Exception | None = None
        self._oldest = 0.0
        self._added = gateway.metrics.model(job.model.name).added
        self._loop = asyncio.get_running_loop()
        self._last_write = self._loop.time()
        self._patience = gateway.config.comment_seconds
        self._timer: asyncio.TimerHandle | None = None

    async def serve(self, receive: Receive) -> None:
        """Send everything. Raises `Gone` when the client leaves, and `InferenceError` only while nothing was sent."""
        self._take_over()
        try:
            await self._serve(receive)
        finally:
            if self._streams.get(self._job.id) == self._supersede:
                del self._streams[self._job.id]

    async def _serve(self, receive: Receive) -> None:
        running = submit(self._gateway, self._job, self._sink, self._end)
        watch = _watch(receive, self._bell.ring)
        self._watch_silence()
        try:
            await self._write_until_over(watch)
            await self._finish()
        finally:
            running.stop()
            if self._timer is not None:
                self._timer.cancel()
            watch.cancel()

    def _take_over(self) -> None:
        """End the connection that this one replaces, should it still be there: a client that is back has left it."""
        earlier = self._streams.get(self._job.id)
        if earlier is not None:
            earlier()
        self._streams[self._job.id] = self._supersede
        if self._job.resumed:
            self._gateway.metrics.stream_resumes.labels(self._job.model.name).inc()

    def _supersede(self) -> None:
        self._job.abort()
        self._end(Gone())

    def _end(self, problem: Exception | None) -> None:
        self._over, self._problem = True, problem
        self._bell.ring()

    def _watch_silence(self) -> None:
        """Fill a long silence with a comment. One timer looks when a comment would be due; tokens need not touch it."""
        if not self._patience:
            return
        due = self._last_write + self._patience
        if due <= self._loop.time():
            self._comment_due = True
            self._bell.ring()
            due = self._loop.time() + self._patience
        self._timer = self._loop.call_at(due, self._watch_silence)

    def _sink(self, choice: Choice, piece: Piece) -> None:
        if not self._outbox:
            self._oldest = self._gateway.dispatch.news_at
        if choice.index not in self._begun:
            self._begun.add(choice.index)
            opening = self._renderer.opening(choice)
            if not choice.opened:
                self._outbox.append(opening)
        event = self._renderer.piece(choice, piece)
        self._outbox.append(event)
        self._unread += len(event)
        if self._unread > MAX_UNREAD_BYTES:
            raise InferenceError(_unread())
        self._bell.ring()

    async def _write_until_over(self, watch: asyncio.Task[None]) -> None:
        while not self._over:
            await self._bell.rung()
            if watch.done():
                raise Gone
            if not self._over:
                await self._write(self._take())

    def _take(self) -> bytes:
        """Everything that is ready to be sent."""
        ready = b"".join(self._outbox)
        self._outbox.clear()
        self._unread = 0
        silent, self._comment_due = self._comment_due, False
        if not ready:
            return COMMENT if silent else b""
        return ready if self._progress is None else self._progress.sealed(ready)

    def _rest(self) -> bytes:
        """What is left at the end, and the end mark."""
        ready = b"".join(self._outbox)
        if self._progress is None:
            return ready + self._renderer.closing() + DONE
        if not self._progress.closed:
            ready += self._renderer.closing()
        return self._progress.sealed(ready, closed=True) + DONE

    async def _finish(self) -> None:
        if isinstance(self._problem, Gone):
            raise self._problem
        error = self._error()
        if error is None:
            await self._write(self._rest(), more=False)
        elif self._started:
            await self._write(self._take() + b"data: " + error_body(error) + b"\n\n", more=False)
        else:
            raise InferenceError(error)

    def _error(self) -> ErrorInfo | None:
        problem = self._problem
        if problem is None or isinstance(problem, InferenceError):
            return None if problem is None else problem.info
        fields = {"request": self._job.request_id}
        self._gateway.log.error("a stream failed", exc_info=problem, extra={"fields": fields})
        return internal_error(self._job.request_id)

    async def _write(self, body: bytes, more: bool = True) -> None:
        if not body and more:
            return
        if not self._started:
            self._started = True
            headers = [*STREAM_HEADERS, *(() if self._progress is None else (RESUMABLE,))]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._last_write = self._loop.time()
        oldest, self._oldest = self._oldest, 0.0
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
        if oldest:
            self._added.observe(max(0.0, self._gateway.clock.wall() - oldest))


def _unread() -> ErrorInfo:
    """The client lets its answer pile up."""
    message = "The answer was not read for too long."
    return ErrorInfo(message=message, type=INVALID_REQUEST, code="client_too_slow", status=408)
