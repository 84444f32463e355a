"""One completion in flight: what was emitted so far, where it is computed, and who is told.

A flight outlives workers and nodes. It is a function of the tokens that came up, so any engine can go on from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from inference_stack.core.errors import ErrorInfo
from inference_stack.core.request import FinishReason, Request
from inference_stack.core.step import TokenDelta

if TYPE_CHECKING:
    from inference_stack.dispatch.node import Node

TRIAL_DEATHS: Final = 2
ALONE_DEATHS: Final = 3

Sink = Callable[[TokenDelta], None]


class Flight:
    """A dispatched request. `sink` is called with its news, in order; the last has `finish` set. It must not raise.

    `names` are its prompt's block names, for prefix affinity; `holder` hints at the node that may still compute it.
    `deaths` counts worker deaths that it was present in since it last made progress; `node` is where it runs now, `numerics`
    the `numerics_id` that computed what was emitted, here or (`bound`) before its client came back; `uncached` the known tokens
    that its node has yet to compute, -1 once it has emitted there; `recovering` flights recompute `recompute` tokens after a loss.
    """

    __slots__ = (
        "_cached_known",
        "_give_up",
        "_prompt_scored",
        "_sink",
        "attempt",
        "bound",
        "deaths",
        "done",
        "emitted",
        "holder",
        "moves",
        "names",
        "node",
        "numerics",
        "recompute",
        "recovering",
        "request",
        "since",
        "uncached",
    )

    def __init__(
        self,
        request: Request,
        sink: Sink,
        give_up: Callable[[Flight], None],
        since: float,
        names: Sequence[bytes] = (),
        holder: bytes = b"",
        numerics: str = "",
    ) -> None:
        self.request = request
        self.emitted: list[int] = list(request.continuation.emitted)
        self.names = names
        self.holder = holder
        self.since = since
        self.node: Node | None = None
        self.numerics = numerics
        self.bound = bool(numerics)
        self.attempt = request.attempt - 1
        self.moves = 0
        self.deaths = 0
        self.uncached = -1
        self.recovering = False
        self.recompute = 0
        self.done = False
        self._sink = sink
        self._give_up = give_up
        self._cached_known = False
        self._prompt_scored = False

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def hint(self) -> bytes:
        """Points at the node that it was last sent to; empty before."""
        return b"" if self.node is None else self.node.hint

    @property
    def known_tokens(self) -> int:
        """Tokens that an engine must compute before it can emit the next one."""
        return len(self.request.continuation.prompt) + len(self.emitted)

    @property
    def picky(self) -> bool:
        """Whether its client has tokens, so that where it goes on matters."""
        return bool(self.numerics) and (self.bound or bool(self.emitted))

    @property
    def suspect(self) -> bool:
        """Whether so many workers died with it that it is tried by itself."""
        return self.deaths >= TRIAL_DEATHS

    @property
    def must_be_alone(self) -> bool:
        """Whether so many workers died with it that the next one is risked on nothing else."""
        return self.deaths >= ALONE_DEATHS

    @property
    def urgency(self) -> tuple[int, float]:
        """Sorts flights that wait: most important first, then oldest."""
        return -self.request.qos.priority, self.request.arrival

    def next_attempt(self) -> Request:
        """The request to dispatch now: everything emitted so far is known, and older attempts are void."""
        self.attempt += 1
        if (self.attempt, self.must_be_alone) != (self.request.attempt, self.request.isolated):
            self.request = replace(self.request, attempt=self.attempt, isolated=self.must_be_alone)
        first = self.request.continuation
        if len(first.emitted) == len(self.emitted) and not self._prompt_scored:
            return self.request
        params = replace(first.params, prompt_logprobs=None) if self._prompt_scored else first.params
        return replace(self.request, continuation=replace(first, params=params, emitted=tuple(self.emitted)))

    def take(self, delta: TokenDelta) -> None:
        """News of the present attempt. What an earlier one already told is not told again."""
        if delta.tokens:
            self.deaths = 0
            self.emitted.extend(delta.tokens)
        if delta.cached_tokens is not None:
            if self._cached_known:
                delta = replace(delta, cached_tokens=None, queue_seconds=None)
            self._cached_known = True
        if delta.prompt_logprobs is not None:
            self._prompt_scored = True
        self._tell(delta)

    def fail(self, error: ErrorInfo) -> None:
        """End the stream with an error. The engine is not told."""
        if not self.done:
            self._tell(TokenDelta(request_id=self.id, finish=FinishReason.ERROR, error=error))

    def abort(self) -> None:
        """Stop the request, wherever it is. Idempotent, and harmless after the end."""
        if not self.done:
            self._tell(TokenDelta(request_id=self.id, finish=FinishReason.ABORT))
            self._give_up(self)

    def _tell(self, delta: TokenDelta) -> None:
        self.done = delta.finish is not None
        self._sink(delta)
