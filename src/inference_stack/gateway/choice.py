"""One completion on its way up: token deltas in, pieces of text with their tokens and logprobs out.

Here the completion ends: at the engine's word, at a stop string (then the engine is told), or with an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from inference_stack.core.errors import SERVER_ERROR, ErrorInfo, InferenceError
from inference_stack.core.request import FinishReason, Request
from inference_stack.core.step import TokenDelta, TokenLogprob
from inference_stack.frontend.completion import TextAssembler, TokenEntry
from inference_stack.gateway.api import Dispatch, Ticket
from inference_stack.gateway.progress import Replay, diverged
from inference_stack.gateway.resume import Mark
from inference_stack.telemetry.account import Account


@dataclass(slots=True)
class Piece:
    """What is new in a choice. `tokens` may run ahead of `text`, which waits for whole characters and stop strings.

    `entries` (logprobs, where asked for) come with the text of their tokens. Treat as immutable: like `TextDelta`, it is not frozen
    because one is made for every delta.
    """

    text: str
    tokens: tuple[int, ...]
    entries: tuple[TokenEntry, ...]
    finish: FinishReason | None


Sink = Callable[["Choice", Piece], None]
Over = Callable[["Choice", Exception | None], None]


def _nobody(choice: Choice, news: object) -> None:
    """Listens to a completion that was not started."""


class Choice:
    """`index` is the choice's number in the answer, `prompt_index` its prompt's; `limit` the tokens it may show. `opened`: its
    client has its first events."""

    def __init__(
        self, index: int, prompt_index: int, request: Request, text: TextAssembler, limit: int, account: Account
    ) -> None:
        self.index = index
        self.prompt_index = prompt_index
        self.request = request
        self.limit = limit
        self.opened = False
        self.cached_tokens: int | None = None
        self.prompt_logprobs: tuple[TokenLogprob, ...] = ()
        self._ticket: Ticket | None = None
        self._sink: Sink = _nobody
        self._over: Over = _nobody
        self._text = text
        self._account = account
        self._mark: Mark | None = None
        self._replay: Replay | None = None
        self._ended = False

    @property
    def completion_tokens(self) -> int:
        """Tokens of the completion so far, up to and including the one that ended it."""
        return self._text.tokens

    def follow(self, mark: Mark, replay: Replay | None) -> None:
        """Keep `mark` up to date with what the client gets; and where its stream is resumed, begin where it broke off."""
        self._mark = mark
        if replay is not None:
            self.cached_tokens = replay.cached_tokens
            self.opened = replay.opened
            self._replay = replay

    def start(self, dispatch: Dispatch, sink: Sink, over: Over) -> None:
        """Run it. `sink` gets its pieces; then `over` is called once, with what went wrong if anything did. Raises
        `InferenceError` where it is refused."""
        self._sink, self._over = sink, over
        if self._replay is None:
            ticket = dispatch.submit(self.request, self.feed)
        else:
            ticket = dispatch.submit(self.request, self.feed, self._replay.holder, self._replay.numerics)
        if not self._ended:
            self._ticket = ticket

    def feed(self, delta: TokenDelta) -> None:
        """News from the dispatcher. Whatever they lead to is this completion's affair alone."""
        if self._ended:
            return
        try:
            piece = self.take(delta)
            if piece is not None:
                self._sink(self, piece)
        except Exception as problem:  # it must reach the client, and must not reach the dispatcher
            self._stop(problem)
            return
        if self._ended:
            self._leave(stop=delta.finish is None)(self, None)

    def abort(self) -> None:
        """Stop the engine's work, unless the completion has ended."""
        if not self._ended:
            self._end(FinishReason.ABORT)
            self._leave(stop=True)

    def _stop(self, problem: Exception) -> None:
        if not self._ended:
            self._end(
                FinishReason.ERROR, problem.info.code if isinstance(problem, InferenceError) else "internal_error"
            )
        self._leave(stop=True)(self, problem)

    def _leave(self, stop: bool) -> Over:
        """Let go of who ran it and of who listened, who hold it too: a cycle would wait for the collector, with all that an answer
        holds. Returns whom to tell of the end."""
        ticket, over = self._ticket, self._over
        self._ticket, self._sink, self._over = None, _nobody, _nobody
        if stop and ticket is not None:
            ticket.abort()
        return over

    def take(self, delta: TokenDelta) -> Piece | None:
        """The piece that a delta adds, if any. Raises `InferenceError` for a delta that ends in an error."""
        if delta.cached_tokens is not None and self.cached_tokens is None:
            self.cached_tokens = delta.cached_tokens
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        if delta.finish in (FinishReason.ERROR, FinishReason.ABORT):
            error = delta.error or _broken()
            self._end(FinishReason.ERROR, error.code)
            raise InferenceError(error)
        if self._replay is not None:
            delta = self._caught_up(delta, self._replay)
        if not delta.tokens and delta.finish is None:
            self._account.news(delta, 0)
            return None
        piece = self._piece(delta)
        self._account.news(delta, len(piece.tokens))
        if self._mark is not None:
            self._note(self._mark, piece)
        if piece.finish is not None:
            self._end(piece.finish)
        return piece

    def _note(self, mark: Mark, piece: Piece) -> None:
        """What the client will have got."""
        mark.cached_tokens = self.cached_tokens
        mark.node = b"" if self._ticket is None else self._ticket.hint
        mark.add(piece.tokens, piece.finish is not None)

    def _caught_up(self, delta: TokenDelta, replay: Replay) -> TokenDelta:
        """The delta without the tokens that the client has. Raises `InferenceError` where they are not the same."""
        known = replay.take(delta.tokens)
        self._text.feed(delta.tokens[:known], delta.logprobs[:known])
        if replay.done:
            self._replay = None
        if self._text.finished or (delta.finish is not None and not replay.done):
            raise diverged()
        return replace(delta, tokens=delta.tokens[known:], logprobs=delta.logprobs[known:])

    def _piece(self, delta: TokenDelta) -> Piece:
        """The delta's text. What goes beyond the limit is cut off; the limit then ends the completion."""
        before = self._text.tokens
        tokens = delta.tokens[: self.limit - before]
        verdict = delta.finish if len(tokens) == len(delta.tokens) else None
        if verdict is None and before + len(tokens) >= self.limit:
            verdict = FinishReason.LENGTH
        news = self._text.feed(tokens, delta.logprobs[: len(tokens)], verdict)
        return Piece(news.text, tokens[: self._text.tokens - before], news.entries, news.finish)

    def _end(self, reason: FinishReason, code: str | None = None) -> None:
        self._ended = True
        self._account.close(reason.value, code)


def _broken() -> ErrorInfo:
    """The engine stopped without saying why."""
    message = "The completion ended before it was finished."
    return ErrorInfo(message=message, type=SERVER_ERROR, code="interrupted", status=500)
