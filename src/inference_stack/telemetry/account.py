"""The account of one completion: when it came, what it got and how it ended, on the clock it is given.

Feeds the metrics as news arrives and becomes one log line at the end. Knows neither HTTP nor text.
"""

from __future__ import annotations

import logging

from inference_stack.core.seams import Clock
from inference_stack.core.step import TokenDelta
from inference_stack.telemetry.metrics import Metrics


class Account:
    """Times are the clock's seconds. Open from construction until `close`, which may be called more than once. Of a completion
    that is `resumed` on another connection, neither prompt nor first token are counted again."""

    def __init__(
        self,
        metrics: Metrics,
        clock: Clock,
        log: logging.Logger,
        *,
        model: str,
        request_id: str,
        completion_id: str,
        prompt_tokens: int,
        arrival: float,
        resumed: bool = False,
    ) -> None:
        self._metrics = metrics
        self._model = metrics.model(model)
        self._clock = clock
        self._log = log
        self.request_id = request_id
        self.completion_id = completion_id
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.attempts = 1
        self.arrival = arrival
        self.started: float | None = None
        self.first_token: float | None = None
        self.last_token: float | None = None
        self.closed = False
        self._attempt = 0
        self._queue_seconds: float | None = None
        self._resumed = resumed
        self._model.in_flight.inc()

    def news(self, delta: TokenDelta, tokens: int) -> None:
        """A delta arrived, of which `tokens` tokens count."""
        now = self._clock.now()
        if self.started is None:
            self.started = now
            if not self._resumed:
                self._model.prompt_tokens.inc(self.prompt_tokens)
        if delta.queue_seconds is not None:
            self._queue_seconds = delta.queue_seconds
            self._model.queue.observe(delta.queue_seconds)
        if delta.attempt > self._attempt:
            self.attempts += 1
            self._attempt = delta.attempt
        if delta.cached_tokens is not None:
            self.cached_tokens = delta.cached_tokens
        if tokens:
            self._count(now, tokens)

    def _count(self, now: float, tokens: int) -> None:
        if self.last_token is None:
            self.first_token = now
            if not self._resumed:
                self._model.ttft.observe(now - self.arrival)
            # Without word from the engine, queueing and prefill cannot be told apart: neither is counted.
            if self._queue_seconds is not None and not self._resumed:
                self._model.prefill.observe(max(0.0, now - self.arrival - self._queue_seconds))
            gaps = tokens - 1
        else:
            self._model.itl.observe((now - self.last_token) / tokens, tokens)
            gaps = 0
        if gaps:
            self._model.itl.observe(0.0, gaps)
        self.last_token = now
        self.completion_tokens += tokens
        self._model.generation_tokens.inc(tokens)

    def close(self, reason: str, code: str | None = None) -> None:
        """The completion ended for `reason` (an error's `code` where it was one): count it and log one line."""
        if self.closed:
            return
        self.closed = True
        now = self._clock.now()
        self._model.in_flight.dec()
        self._model.finished(reason)
        self._model.e2e.observe(now - self.arrival)
        if self.first_token is not None and self.last_token is not None:
            self._model.decode.observe(self.last_token - self.first_token)
        if code is not None:
            self._metrics.errors.labels(self._model.model, code).inc()
        self._log.info("completion ended", extra={"fields": self._summary(now, reason, code)})

    def _summary(self, now: float, reason: str, code: str | None) -> dict[str, object]:
        facts: dict[str, object] = {
            "request": self.request_id,
            "completion": self.completion_id,
            "model": self._model.model,
            "finish": reason,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds": round(now - self.arrival, 6),
        }
        if self.first_token is not None:
            facts["ttft"] = round(self.first_token - self.arrival, 6)
        if code is not None:
            facts["error"] = code
        if self.attempts > 1:
            facts["attempts"] = self.attempts
        return facts
