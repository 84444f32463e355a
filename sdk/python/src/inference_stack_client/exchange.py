"""One call from its first byte to its last, whatever breaks in between: what to send, what to keep, when to come back.

    request ─▶ opened ─▶ feed … feed ─▶ over
       ▲          │         │ broken: the rest is asked for, from the last id that came
       └──────────┴─────────┘ unreachable, refused: again, elsewhere or later

Does no I/O and does not sleep, so that the blocking and the asynchronous client are the same. Methods that return seconds say
how long to wait before `request` is sent again; they raise when there is nothing left to try.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from inference_stack_client.errors import (
    APIError,
    StreamInterruptedError,
    connection_error,
    status_error,
    stream_error,
)
from inference_stack_client.objects import Object, parse
from inference_stack_client.retries import pause, worth_retrying
from inference_stack_client.sse import Event, Parser

RESUMABLE = "x-resumable"
"""The answer's header that promises ids, and that they can be sent back."""
AWAY = (502, 503, 504)
"""Statuses that say: not this server, at least not now."""
PASSING = ("unavailable",)
"""Codes of errors inside a stream that say the same."""
SCATTER_SECONDS = 0.05
"""Clients that lost the same server do not all come back in the same moment."""


@dataclass(frozen=True)
class Settings:
    """How calls are made. Seconds; `resume_seconds` is how long a broken stream may stay without news, `idle_seconds` how long
    it may be silent until it counts as broken."""

    base_urls: tuple[str, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 600.0
    connect_seconds: float = 5.0
    max_retries: int = 2
    resume_seconds: float = 60.0
    idle_seconds: float = 60.0


class Exchange:
    """One call. `body` is encoded once: what is sent again is the same, byte for byte."""

    def __init__(
        self, settings: Settings, method: str, path: str, body: Mapping[str, Any] | None, stream: bool = False
    ) -> None:
        self.stream = stream
        self.done = False
        self._settings = settings
        self._method = method
        self._path = path
        self._content = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
        self._base = 0
        self._untried = len(settings.base_urls) - 1
        self._attempts = 0
        self._resume_until: float | None = None
        self._failure: APIError | None = None
        self._last_id = ""
        self._resumable = False
        self._released = False
        self._held: list[Object] = []
        self._parser = Parser()
        self._request_id: str | None = None

    # -- what to send

    def request(self) -> httpx.Request:
        """The request to send now."""
        settings = self._settings
        headers = {"accept": "text/event-stream" if self.stream else "application/json", **settings.headers}
        if self._method == "POST":
            headers["content-type"] = "application/json"
        if self._last_id:
            headers["last-event-id"] = self._last_id
        reading = min(settings.timeout, settings.idle_seconds) if self._released else settings.timeout
        timeout = httpx.Timeout(settings.timeout, connect=settings.connect_seconds, read=reading)
        url = settings.base_urls[self._base] + self._path
        return httpx.Request(
            self._method, url, headers=headers, content=self._content, extensions={"timeout": timeout.as_dict()}
        )

    # -- what came back

    def unreachable(self, error: httpx.TransportError) -> float:
        """The request did not get through. Seconds until the next one."""
        return self._again(connection_error(error), elsewhere=True)

    def refused(self, response: httpx.Response) -> float:
        """The answer, whose body was read, has an error status. Seconds until the next request."""
        error = status_error(response)
        diverged = self._resume_until is not None and response.status_code == 409
        if diverged or not worth_retrying(response.status_code, response.headers):
            raise error
        return self._again(error, response.status_code in AWAY, response.headers)

    def opened(self, response: httpx.Response) -> StreamInterruptedError | None:
        """The answer begins. The problem, where a server does not know how to go on with a stream."""
        self._resumable = response.headers.get(RESUMABLE) == "true"
        self._request_id = response.headers.get("x-request-id")
        self._untried = len(self._settings.base_urls) - 1
        self._parser = Parser()
        if self._last_id and not self._resumable:
            return StreamInterruptedError("The connection broke, and the server cannot resume streams.")
        if self._resumable:
            reading = min(self._settings.timeout, self._settings.idle_seconds)
            response.request.extensions["timeout"]["read"] = reading  # read when the body begins, which is now
        return None

    def feed(self, received: bytes) -> list[Object]:
        """The events that are complete with these bytes and will not come again."""
        released: list[Object] = []
        for event in self._parser.feed(received):
            if self.over:
                break
            self._take(event, released)
        if released:
            self._released = True
            self._resume_until = None
            self._attempts = 0
        return released

    @property
    def over(self) -> bool:
        """Whether no more will come of this answer."""
        return self.done or self._failure is not None

    def broken(self, error: httpx.TransportError | None) -> float:
        """The answer ended before its end mark. Seconds until the rest is to be asked for."""
        self._held.clear()
        failure, self._failure = self._failure, None
        if failure is not None and (failure.code not in PASSING or not self._may_resume()):
            raise failure
        cause = failure or (connection_error(error) if error is not None else None)
        if not self._may_resume():
            raise StreamInterruptedError("The stream broke, and cannot be resumed.") from cause
        if self._resume_until is None:
            self._resume_until = time.monotonic() + self._settings.resume_seconds
            self._next_base()
            return random.uniform(0.0, SCATTER_SECONDS)
        return self._again(cause or StreamInterruptedError("The stream ended early."), elsewhere=True)

    # -- how

    def _take(self, event: Event, released: list[Object]) -> None:
        """Events are passed on when it is certain that they will not be sent again: with the next id, or at the end."""
        if event.data == "[DONE]":
            self.done = True
        else:
            try:
                news = parse(event.data)
            except ValueError:
                news = Object(error=Object(message="The server sent an event that is no JSON.", code="bad_event"))
            if isinstance(news, Object) and news.get("error"):
                self._failure = stream_error(news["error"], self._request_id)
            else:
                self._held.append(news)
        if event.id is not None:
            self._last_id = event.id
        final = self.done or (self._failure is not None and self._failure.code not in PASSING)
        if final or event.id is not None or not self._resumable:
            released += self._held
            self._held = []

    def _may_resume(self) -> bool:
        """Whether nothing would be lost or told twice."""
        return self._settings.resume_seconds > 0 and (bool(self._last_id) or not self._released)

    def _again(self, error: Exception, elsewhere: bool, headers: Mapping[str, str] | None = None) -> float:
        """Seconds until another attempt. Another server is asked at once; when all were, there is a pause."""
        if self._resume_until is not None and time.monotonic() >= self._resume_until:
            raise StreamInterruptedError("The stream broke, and could not be resumed in time.") from error
        if elsewhere:
            self._next_base()
            if self._untried > 0:
                self._untried -= 1
                return 0.0
        if self._resume_until is None and self._attempts >= self._settings.max_retries:
            raise error
        self._untried = len(self._settings.base_urls) - 1
        wait = pause(self._attempts, headers)
        self._attempts += 1
        if self._resume_until is not None:
            wait = min(wait, max(0.0, self._resume_until - time.monotonic()))
        return wait

    def _next_base(self) -> None:
        self._base = (self._base + 1) % len(self._settings.base_urls)
