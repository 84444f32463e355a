"""Requests on a link: their headers on the main stream, long prompts as bodies on the other, and the two joined again.

`PromptSender` cuts a gateway's bodies into parts; `Joiner` puts a node's together. Order is kept where it matters: requests of
one id come as they were sent, and an abort drops what is still on its way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from inference_stack.core.request import Continuation, Qos, Request, SamplingParams
from inference_stack.wire.codec import ProtocolError
from inference_stack.wire.grpc import fleet_pb2
from inference_stack.wire.grpc.handles import Handles
from inference_stack.wire.grpc.mirror import Mirror
from inference_stack.wire.messages import Submit

pb: Any = fleet_pb2
INLINE_TOKENS: Final = 4096
"""Up to so many tokens of one message travel in the header."""
PART_TOKENS: Final = 65536
"""Tokens of one part: 256 KiB."""
MAX_TOKENS_UNDER_WAY: Final = 64 << 20
"""Prompt tokens of one link that may wait to be sent, or to be joined: 256 MiB."""
_TOKEN = np.dtype("<u4")

_request = Mirror(Request, pb.Request, skip=("continuation", "qos"))
_continuation = Mirror(Continuation, pb.Continuation, skip=("prompt", "emitted", "params"))
_params = Mirror(SamplingParams, pb.SamplingParams)
_qos = Mirror(Qos, pb.Qos)


def pack(tokens: Sequence[int]) -> bytes:
    """Token ids as they are sent."""
    return np.array(tokens, dtype=_TOKEN).tobytes()


def unpack(data: bytes) -> list[int]:
    """Token ids as they were packed. Raises `ValueError`."""
    return list(np.frombuffer(data, dtype=_TOKEN).tolist())


@dataclass(slots=True, frozen=True)
class _Outgoing:
    number: int
    request_id: str
    runs: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.runs))

    def parts(self) -> Iterator[bytes]:
        for run in self.runs:
            for start in range(0, len(run), PART_TOKENS):
                tokens = pack(run[start : start + PART_TOKENS])
                yield pb.PromptPart(body=self.number, tokens=tokens).SerializeToString()


class PromptSender:
    """A gateway's requests on their way out."""

    def __init__(self, handles: Handles) -> None:
        self.waiting_tokens = 0
        self._handles = handles
        self._bodies: deque[_Outgoing] = deque()
        self._current: _Outgoing | None = None
        self._last = 0
        self._wake = asyncio.Event()

    def submit(self, message: Submit) -> Any:
        """The header; bodies are queued."""
        inline = INLINE_TOKENS
        requests = []
        for request in message.requests:
            known = request.continuation
            size = len(known.prompt) + len(known.emitted)
            header = _header(request, self._handles.assign(request.id, request.attempt))
            if size <= inline:
                inline -= size
                header.continuation.tokens = pack(known.prompt + known.emitted)
            else:
                header.continuation.body = self._enqueue(request)
            requests.append(header)
        return pb.Submit(requests=requests)

    def abort(self, request_ids: Sequence[str]) -> None:
        """Send no more of these prompts."""
        gone = set(request_ids)
        dropped = [body for body in self._bodies if body.request_id in gone]
        if dropped:
            self.waiting_tokens -= sum(body.tokens for body in dropped)
            self._bodies = deque(body for body in self._bodies if body.request_id not in gone)
        if self._current is not None and self._current.request_id in gone:
            self._current = None

    async def run(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Send bodies, for ever."""
        while True:
            while not self._bodies:
                self._wake.clear()
                await self._wake.wait()
            body = self._bodies.popleft()
            self.waiting_tokens -= body.tokens
            self._current = body
            for part in body.parts():
                await write(part)
                if self._current is not body:
                    break  # aborted

    def _enqueue(self, request: Request) -> int:
        self._last += 1
        known = request.continuation
        self._bodies.append(_Outgoing(self._last, request.id, (known.prompt, known.emitted)))
        self.waiting_tokens += self._bodies[-1].tokens
        self._wake.set()
        return self._last


def _header(request: Request, handle: int) -> Any:
    known = request.continuation
    header = _request.to_proto(request)
    header.handle = handle
    header.qos.MergeFrom(_qos.to_proto(request.qos))
    continuation = header.continuation
    continuation.MergeFrom(_continuation.to_proto(known))
    continuation.params.MergeFrom(_params.to_proto(known.params))
    continuation.prompt_tokens = len(known.prompt)
    continuation.emitted_tokens = len(known.emitted)
    return header


def _whole(header: Any, tokens: Sequence[int]) -> Request:
    known = header.continuation
    continuation = _continuation.from_proto(
        known,
        prompt=tuple(tokens[: known.prompt_tokens]),
        emitted=tuple(tokens[known.prompt_tokens :]),
        params=_params.from_proto(known.params),
    )
    request: Request = _request.from_proto(header, continuation=continuation, qos=_qos.from_proto(header.qos))
    return request


@dataclass(slots=True)
class _Arriving:
    """A request and those of its tokens that are here."""

    header: Any
    expected: int
    tokens: list[int] = field(default_factory=list)

    def add(self, data: bytes) -> None:
        self.tokens += unpack(data)
        if len(self.tokens) > self.expected:
            raise ProtocolError("a prompt with more tokens than announced")

    @property
    def complete(self) -> bool:
        return len(self.tokens) == self.expected


class Joiner:
    """A node's requests on their way in. Methods return the messages that are whole now, and raise `ProtocolError`."""

    def __init__(self, handles: Handles) -> None:
        self._handles = handles
        self._waiting: deque[list[_Arriving]] = deque()
        self._bodies: dict[int, _Arriving] = {}
        self._early: dict[int, list[bytes]] = {}
        self._newest = 0
        self._tokens = 0

    def submit(self, message: Any) -> list[Submit]:
        """A header has come."""
        arriving = [self._begin(header) for header in message.requests]
        behind = {request.header.id for submission in self._waiting for request in submission}
        if all(request.complete and request.header.id not in behind for request in arriving):
            return [self._finish(arriving)]
        self._waiting.append(arriving)
        return self._ready()

    def part(self, message: Any) -> list[Submit]:
        """A part of a body has come, perhaps before its header."""
        arriving = self._bodies.get(message.body)
        if arriving is None and message.body <= self._newest:
            return []  # aborted
        self._tokens += len(message.tokens) // _TOKEN.itemsize
        if self._tokens > MAX_TOKENS_UNDER_WAY:
            raise ProtocolError("too many prompts under way")
        if arriving is None:
            self._early.setdefault(message.body, []).append(message.tokens)
            return []
        arriving.add(message.tokens)
        return self._ready() if arriving.complete else []

    def abort(self, request_ids: Sequence[str]) -> list[Submit]:
        """Drop what has not been joined yet."""
        gone = set(request_ids)
        kept = []
        for submission in self._waiting:
            for request in submission:
                if request.header.id in gone:
                    self._forget(request)
            if rest := [request for request in submission if request.header.id not in gone]:
                kept.append(rest)
        self._waiting = deque(kept)
        return self._ready()

    def _begin(self, header: Any) -> _Arriving:
        known = header.continuation
        self._handles.learn(header.id, header.attempt, header.handle)
        arriving = _Arriving(header, known.prompt_tokens + known.emitted_tokens)
        if not known.body:
            arriving.add(known.tokens)
            if not arriving.complete:
                raise ProtocolError("a prompt with fewer tokens than announced")
            return arriving
        if known.body <= self._newest:
            raise ProtocolError("a body out of order")
        self._newest = known.body
        self._bodies[known.body] = arriving
        for part in self._early.pop(known.body, ()):
            arriving.add(part)
        return arriving

    def _ready(self) -> list[Submit]:
        """Whole submissions from the front: bodies come in the order of their headers."""
        messages = []
        while self._waiting and all(request.complete for request in self._waiting[0]):
            messages.append(self._finish(self._waiting.popleft()))
        return messages

    def _finish(self, submission: list[_Arriving]) -> Submit:
        for request in submission:
            self._forget(request)
        return Submit(requests=tuple([_whole(request.header, request.tokens) for request in submission]))

    def _forget(self, request: _Arriving) -> None:
        if self._bodies.pop(request.header.continuation.body, None) is not None:
            self._tokens -= len(request.tokens)
