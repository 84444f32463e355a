"""Tokens to text as they come: never half a character, never a character that a later token could change.

A `Detokenizer` is a function of the prompt's last tokens and the tokens fed so far, so it can be rebuilt anywhere from emitted
tokens. For vocabularies that decode byte by byte it is exact: all deltas and the flush together equal `Tokenizer.decode`.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence
from typing import Protocol

from tokenizers.decoders import DecodeStream

from inference_stack.frontend.token_bytes import ByteRule
from inference_stack.frontend.tokenizer import Tokenizer

_UTF8 = codecs.getincrementaldecoder("utf-8")
_LONGEST_CHARACTER = 4
_CONTEXT_TOKENS = 8


class Detokenizer(Protocol):
    """Turns the tokens of one completion into text. Not for use from two threads at once."""

    def feed(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        ...

    def flush(self) -> str:
        """What is left at the end: U+FFFD for bytes that never became a character. Nothing may be fed after it."""
        ...


def detokenizer(tokenizer: Tokenizer, prompt: Sequence[int] = (), *, skip_special_tokens: bool = True) -> Detokenizer:
    """A detokenizer for text that follows `prompt`. Special tokens have no text where they are skipped."""
    if tokenizer.byte_rule is not None:
        return _ByteDetokenizer(tokenizer, tokenizer.byte_rule, prompt, skip_special_tokens)
    return _StreamDetokenizer(tokenizer, prompt, skip_special_tokens)


class _ByteDetokenizer:
    """Bytes of each token into an incremental UTF-8 decoder."""

    def __init__(self, tokenizer: Tokenizer, rule: ByteRule, prompt: Sequence[int], skip: bool) -> None:
        self._bytes = tokenizer.token_bytes
        self._skipped: Collection[int] = tokenizer.special_ids if skip else frozenset()
        self._utf8 = _UTF8(errors="replace")
        self._at_start = rule.strip_first_space and all(token in self._skipped for token in prompt)
        self._utf8.decode(self._last_bytes(prompt))

    def _last_bytes(self, prompt: Sequence[int]) -> bytes:
        """Enough of the prompt's end to know whether it ends inside a character."""
        tail = b""
        for token in reversed(prompt):
            if token not in self._skipped:
                tail = self._bytes(token) + tail
            if len(tail) >= _LONGEST_CHARACTER:
                break
        return tail

    def feed(self, token: int) -> str:
        if token in self._skipped:
            return ""
        return self._begun(self._utf8.decode(self._bytes(token)))

    def flush(self) -> str:
        return self._begun(self._utf8.decode(b"", final=True))

    def _begun(self, text: str) -> str:
        if not self._at_start or not text:
            return text
        self._at_start = False
        return text[1:] if text[0] == " " else text


class _StreamDetokenizer:
    """The library's stream, for decoders that look at more than one token.

    Where such a decoder changes text it has already given out (the library calls that an invalid prefix), the stream starts
    anew behind it: what was given out stays as it is.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], skip: bool) -> None:
        self._raw = tokenizer.raw
        self._skip = skip
        self._pending: list[int] = []
        self._stream = self._anew(prompt[-_CONTEXT_TOKENS:])

    def _anew(self, context: Sequence[int]) -> DecodeStream:
        return DecodeStream(ids=list(context), skip_special_tokens=self._skip)

    def feed(self, token: int) -> str:
        self._pending.append(token)
        try:
            text = self._stream.step(self._raw, token)
        except Exception as error:  # the library raises nothing more precise
            if "Invalid prefix" not in str(error):
                raise
            text = self._raw.decode(self._pending, skip_special_tokens=self._skip)
            self._stream = self._anew([token])
        if not text:
            return ""
        self._pending.clear()
        return text

    def flush(self) -> str:
        """Tokens that the stream still held back, decoded by themselves."""
        pending, self._pending = self._pending, []
        return self._raw.decode(pending, skip_special_tokens=self._skip) if pending else ""
