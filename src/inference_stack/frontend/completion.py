"""One completion's tokens to what a client sees: text deltas, log probabilities beside them, the end.

A `TextAssembler` is a function of the prompt and the tokens fed to it, in order: after a failure, feed a new one the tokens
emitted so far and it stands where the old one stood. Knows tokens and text; JSON and HTTP are the gateway's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from inference_stack.core.request import FinishReason
from inference_stack.core.step import TokenLogprob
from inference_stack.frontend.detokenizer import detokenizer
from inference_stack.frontend.stops import StopMatcher
from inference_stack.frontend.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TopEntry:
    """An alternative that a position had."""

    token: int
    text: str
    utf8: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """One token for `logprobs`. `text` is printable, `utf8` its bytes, `offset` the characters of the text before it.

    `logprob` is None where there is none (the prompt's first token).
    """

    token: int
    text: str
    utf8: bytes
    logprob: float | None
    offset: int
    rank: int | None = None
    top: tuple[TopEntry, ...] = ()


@dataclass(slots=True)
class TextDelta:
    """News of a completion. `finish` is set on the last one; `stop_reason` is the stop string or stop token that ended it.

    Treat as immutable. Made for every delta of every stream, so it is not frozen, which would cost several times as much.
    """

    text: str = ""
    entries: tuple[TokenEntry, ...] = ()
    finish: FinishReason | None = None
    stop_reason: str | int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """What a request says of its text. `stop_token_ids` are all tokens that may end it: the model's own, unless ignored,
    and the request's. A stop string counts only if it is completed by the `min_tokens`-th token or a later one."""

    stop: tuple[str, ...] = ()
    stop_token_ids: Collection[int] = field(default_factory=frozenset)
    min_tokens: int = 0
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True


class TextAssembler:
    """Builds one choice's output. Not for use from two threads at once.

    `offset` is where the completion's text begins (with `echo`, behind the prompt's text). `tokens` counts the completion's
    tokens for usage: up to and including the one that ended it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], options: TextOptions, *, offset: int = 0) -> None:
        self._tokenizer = tokenizer
        self._options = options
        self._detokenizer = detokenizer(tokenizer, prompt, skip_special_tokens=options.skip_special_tokens)
        self._stops = StopMatcher(options.stop, include=options.include_stop_str_in_output)
        self._decoded = self._shown = offset
        self._waiting: deque[tuple[int, TokenEntry]] = deque()
        self._released: list[TokenEntry] = []
        self.tokens = 0
        self.finished = False

    def feed(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob] = (), finish: FinishReason | None = None
    ) -> TextDelta:
        """Take the next tokens (with as many `logprobs`, or none) and the engine's verdict, if it has come.

        A stop string ends the completion by itself: `finish` of the answer is then `STOP`, the engine is to be told, and
        whatever is fed afterwards changes nothing. With `finish` `STOP`, a last token that is a stop token has no text.
        """
        texts: list[str] = []
        for index, token in enumerate(tokens):
            if self.finished:
                break
            self.tokens += 1
            if finish is FinishReason.STOP and index == len(tokens) - 1 and token in self._options.stop_token_ids:
                return self._end(texts, finish, token)
            entry = _entry(self._tokenizer, token, logprobs[index], self._decoded) if logprobs else None
            stop = self._text(texts, self._detokenizer.feed(token), entry)
            if stop is not None:
                return self._stopped(texts, stop)
        if self.finished:
            return TextDelta()
        if finish is not None:
            return self._end(texts, finish, None)
        return self._delta(texts, None, None)

    def _text(self, texts: list[str], text: str, entry: TokenEntry | None) -> str | None:
        """Pass text on through the stop strings; the one that it completed, if any."""
        self._decoded += len(text)
        if entry is None and not self._waiting and not self._options.stop:
            self._show(texts, text)
            return None  # nearly every token: nothing can be held back
        if entry is not None:
            self._waiting.append((self._decoded, entry))
        matched = self._stops.feed(text, armed=self.tokens >= self._options.min_tokens)
        self._show(texts, matched.text)
        if matched.stop is None:
            self._release(lambda end, _: end <= self._shown)
        return matched.stop

    def _show(self, texts: list[str], text: str) -> None:
        texts.append(text)
        self._shown += len(text)

    def _release(self, complete: Callable[[int, TokenEntry], bool]) -> None:
        """Make the entries that come first and are `complete` part of the next answer. Done per token, so chunks do not matter."""
        while self._waiting and complete(*self._waiting[0]):
            self._released.append(self._waiting.popleft()[1])

    def _stopped(self, texts: list[str], stop: str) -> TextDelta:
        """The end by a stop string: tokens that lie wholly in what was cut off are not reported."""
        self.finished = True
        self._release(lambda _, entry: entry.offset < self._shown)
        return self._delta(texts, FinishReason.STOP, stop)

    def _end(self, texts: list[str], finish: FinishReason, stop_token: int | None) -> TextDelta:
        """The end that the engine decided; text that was held back comes out, unless it completes a stop string."""
        stop = self._text(texts, self._detokenizer.flush(), None)
        if stop is not None:
            return self._stopped(texts, stop)
        self._show(texts, self._stops.flush())
        self.finished = True
        self._release(lambda *_: True)
        return self._delta(texts, finish, stop_token)

    def _delta(self, texts: list[str], finish: FinishReason | None, reason: str | int | None) -> TextDelta:
        entries, self._released = tuple(self._released), []
        return TextDelta("".join(texts), entries, finish, reason)


def prompt_entries(
    tokenizer: Tokenizer, prompt: Sequence[int], logprobs: Sequence[TokenLogprob], *, skip_special_tokens: bool = True
) -> tuple[str, tuple[TokenEntry, ...]]:
    """The prompt's text and one entry per prompt token, for `echo`. `logprobs` has one entry per token but the first."""
    stream = detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    text, entries = "", []
    for index, token in enumerate(prompt):
        known = logprobs[index - 1] if 0 < index <= len(logprobs) else None
        entries.append(_entry(tokenizer, token, known, len(text)))
        text += stream.feed(token)
    return text + stream.flush(), tuple(entries)


def _entry(tokenizer: Tokenizer, token: int, known: TokenLogprob | None, offset: int) -> TokenEntry:
    text, utf8 = tokenizer.token_text(token), tokenizer.token_bytes(token)
    if known is None:
        return TokenEntry(token, text, utf8, None, offset)
    top = tuple(
        TopEntry(other, tokenizer.token_text(other), tokenizer.token_bytes(other), logprob)
        for other, logprob in known.top
    )
    return TokenEntry(token, text, utf8, known.logprob, offset, known.rank, top)
