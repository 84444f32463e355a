"""One request on a node: whose it is, where it runs, and all that was emitted of it since its attempt began.

    attempt 3 ──tokens──▶ record        attempt 5 comes, its `emitted` a prefix of what is known
                            └──▶ adopted: what is missing is told again, the engine is not disturbed

Decides whether a new attempt may adopt what an older one has computed. Knows no link and no worker.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from inference_stack.core.errors import ErrorInfo
from inference_stack.core.request import Continuation, FinishReason, Request
from inference_stack.core.step import TokenDelta, TokenLogprob

Owner = TypeVar("Owner")
Place = TypeVar("Place")

FIRST_ATTEMPT = 0
REMEMBERED_SECONDS = 60.0
"""How long the attempt of a request that has left is remembered: an older one may still be on its way."""
MOST_REMEMBERED = 1 << 16
"""Of them, 20 MB: a thousand a second that were moved or resumed."""


@dataclass(slots=True, eq=False)
class Run(Generic[Owner, Place]):
    """`request` is the attempt that the engine runs, `attempt` what its owner calls it since it was adopted (if it was).

    `gateway` names the owner's process, also when its link is gone (`owner` None: an orphan). `taken` is when it came, on the
    node's clock. `place` is None while it is held back, and after its end.
    """

    request: Request
    attempt: int
    owner: Owner | None
    gateway: tuple[str, str]
    taken: float
    place: Place | None = None
    began: bool = False
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    cached_tokens: int | None = None
    queue_seconds: float | None = None
    finish: FinishReason | None = None
    error: ErrorInfo | None = None

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def known_tokens(self) -> int:
        """Tokens of prompt and completion that its attempt began with."""
        continuation = self.request.continuation
        return len(continuation.prompt) + len(continuation.emitted)

    def record(self, delta: TokenDelta) -> None:
        """Keep what the engine said. On the path of every token: nothing is copied but references."""
        self.tokens += delta.tokens
        if delta.logprobs:
            self.logprobs += delta.logprobs
        if delta.cached_tokens is not None:
            self.cached_tokens, self.queue_seconds = delta.cached_tokens, delta.queue_seconds
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        if delta.finish is not None:
            self.finish, self.error = delta.finish, delta.error

    def may_adopt(self, request: Request) -> bool:
        """Whether a newer attempt at the same request can simply go on with what runs, or ran, here.

        Not what ended in an error: another try may do better. Not what shall run alone and does not.
        """
        mine, theirs = self.request, request.continuation
        same = (mine.model, mine.cache_salt, mine.adapter) == (request.model, request.cache_salt, request.adapter)
        alone = request.isolated and self.finish is None and not self.request.isolated
        if not same or alone or self.finish in (FinishReason.ERROR, FinishReason.ABORT):
            return False
        return self._same_completion(theirs) and self._covers(theirs)

    def _same_completion(self, theirs: Continuation) -> bool:
        mine = self.request.continuation
        asked = theirs.params.prompt_logprobs  # None also when they have been told
        params = mine.params if asked is not None else replace(mine.params, prompt_logprobs=None)
        return (params, mine.seed, mine.choice, mine.prompt) == (
            theirs.params,
            theirs.seed,
            theirs.choice,
            theirs.prompt,
        )

    def _covers(self, theirs: Continuation) -> bool:
        """Whether all that the newer attempt does not know yet was recorded here."""
        emitted = self.request.continuation.emitted
        if theirs.params.logprobs is not None and len(theirs.emitted) < len(emitted):
            return False
        return (*emitted, *self.tokens)[: len(theirs.emitted)] == theirs.emitted

    def replay(self, request: Request) -> TokenDelta:
        """What an adopting attempt does not know yet, as one delta."""
        continuation, emitted = request.continuation, self.request.continuation.emitted
        have = len(continuation.emitted)
        return TokenDelta(
            request_id=self.id,
            attempt=request.attempt,
            tokens=(*emitted, *self.tokens)[have:],
            logprobs=tuple(self.logprobs[max(0, have - len(emitted)) :]),
            prompt_logprobs=self.prompt_logprobs if continuation.params.prompt_logprobs is not None else None,
            cached_tokens=self.cached_tokens,
            finish=self.finish,
            error=self.error,
            queue_seconds=self.queue_seconds,
        )


class Retired:
    """The attempts of requests that left this node a short while ago; the oldest are forgotten first. A first attempt is not
    remembered, as there is none before it: what costs memory is what was moved or resumed, not all traffic."""

    def __init__(self, seconds: float = REMEMBERED_SECONDS, most: int = MOST_REMEMBERED) -> None:
        self._seconds = seconds
        self._most = most
        self._known: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, request_id: str, attempt: int, now: float) -> None:
        """A request has left."""
        if attempt == FIRST_ATTEMPT:
            return
        self._known[request_id] = (attempt, now + self._seconds)
        self._known.move_to_end(request_id)
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    def expire(self, now: float) -> None:
        """Forget those whose time is over."""
        known = self._known
        while known and next(iter(known.values()))[1] < now:
            known.popitem(last=False)

    def attempt(self, request_id: str) -> int:
        """The attempt that left, or less than any."""
        found = self._known.get(request_id)
        return -1 if found is None else found[0]
