"""One completion in flight: what was emitted so far, and the stream that its client reads.

A flight outlives workers. It is a function of the tokens that came up, so any engine can go on from `continuation()`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from inference_stack.core.errors import ErrorInfo
from inference_stack.core.request import FinishReason, Request
from inference_stack.core.step import TokenDelta

ALONE_DEATHS = 3


class Flight:
    """A dispatched request and its `TokenStream`.

    `deaths` counts worker deaths that it was present in since it last made progress.
    """

    def __init__(self, request: Request, on_abort: Callable[[Flight], None]) -> None:
        self.request = request
        self.emitted: list[int] = list(request.continuation.emitted)
        self.attempt = -1
        self.deaths = 0
        self.done = False
        self._on_abort = on_abort
        self._cached_known = False
        self._prompt_scored = False
        self._pending: deque[TokenDelta] = deque()
        self._news = asyncio.Event()

    @property
    def must_be_alone(self) -> bool:
        """Whether so many workers died with it that the next one is risked on nothing else."""
        return self.deaths >= ALONE_DEATHS

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    def next_attempt(self) -> Request:
        """The request to dispatch now: everything emitted so far is known, and older attempts are void."""
        params = self.request.continuation.params
        if self._prompt_scored:
            params = replace(params, prompt_logprobs=None)
        known = replace(self.request.continuation, params=params, emitted=tuple(self.emitted))
        self.attempt += 1
        self.request = replace(self.request, attempt=self.attempt, isolated=self.must_be_alone)
        return replace(self.request, continuation=known)

    def take(self, delta: TokenDelta) -> None:
        """News from the engine. What an earlier attempt already told is not told again."""
        if self.done or delta.attempt != self.attempt:
            return
        if delta.tokens:
            self.deaths = 0
            self.emitted.extend(delta.tokens)
        if self._cached_known and delta.cached_tokens is not None:
            delta = replace(delta, cached_tokens=None, queue_seconds=None)
        self._cached_known |= delta.cached_tokens is not None
        self._prompt_scored |= delta.prompt_logprobs is not None
        self._push(delta)

    def fail(self, error: ErrorInfo) -> None:
        """End the stream with an error."""
        self._push(TokenDelta(request_id=self.id, finish=FinishReason.ERROR, error=error))

    def abort(self) -> None:
        """Stop the request in the engine. Idempotent, and harmless after the end."""
        if not self.done:
            self._push(TokenDelta(request_id=self.id, finish=FinishReason.ABORT))
            self._on_abort(self)

    async def __aiter__(self) -> AsyncIterator[TokenDelta]:
        """Deltas in order; the last one has `finish` set."""
        while True:
            while self._pending:
                delta = self._pending.popleft()
                yield delta
                if delta.finish is not None:
                    return
            self._news.clear()
            await self._news.wait()

    def _push(self, delta: TokenDelta) -> None:
        self.done = delta.finish is not None
        self._pending.append(delta)
        self._news.set()
