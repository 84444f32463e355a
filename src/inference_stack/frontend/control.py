"""Control tokens in other people's text: what a message says may never act as a control token.

    message string ──guard──▶ string with marks inside every literal ──template──▶ text ──encode──▶ ids
                                                                            │ unmarked literals: the template's own tokens
                                                                            └ all else: marks removed, encoded as plain text

Marks are one character that occurs nowhere else in the request. Knows strings and vocabularies; nothing of messages or Jinja.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from inference_stack.core.errors import invalid
from inference_stack.frontend.literals import alternation
from inference_stack.frontend.tokenizer import PlainEncoder, Tokenizer


class Literals:
    """A set of control tokens' literals, to be found in text."""

    def __init__(self, literals: Iterable[str]) -> None:
        words = sorted({literal for literal in literals if literal})
        self.pattern = re.compile(alternation(words) if words else "(?!)")
        self._heads = {word[:cut] for word in words for cut in range(1, len(word))}
        self._tails = {word[cut:] for word in words for cut in range(1, len(word))}
        self._longest = max(map(len, words), default=1)
        self._firsts = {word[0] for word in words if word}
        self._inner = {character for word in words for character in word[1:]}

    def guard(self, text: str, mark: str) -> str:
        """`text` with `mark` around every character of every literal, and beside a part of one at either end.

        The ends matter because templates put strings together: two innocent halves must not make a whole.
        """
        core = text.strip()
        if not core:
            return text
        may_start = any(first in core for first in self._firsts)
        if not may_start and core[0] not in self._inner:
            return text  # nearly every message
        limit = min(len(core), self._longest - 1)
        before = mark if any(core[:size] in self._tails for size in range(1, limit + 1)) else ""
        if not may_start and not before:
            return text
        after = mark if any(core[-size:] in self._heads for size in range(1, limit + 1)) else ""
        guarded = self.pattern.sub(lambda found: mark + mark.join(found[0]) + mark, core)
        if not before and not after and guarded == core:
            return text
        start = text.index(core)
        return f"{text[:start]}{before}{guarded}{after}{text[start + len(core) :]}"

    def inside(self, text: str, mark: str) -> str:
        """As `guard`, for text that is never put beside other text: only whole literals are marked."""
        return self.pattern.sub(lambda found: mark + mark.join(found[0]) + mark, text)


class GuardedEncoder:
    """Encodes text whose unmarked control tokens are real and whose marked ones are not.

    `controls` are the ids that count as control tokens; other added tokens are found wherever they are spelt.
    """

    def __init__(self, tokenizer: Tokenizer, controls: Iterable[int]) -> None:
        self._ids = {tokenizer.added[token].content: token for token in controls}
        self._added = tokenizer.added
        self._literals = Literals(self._ids)
        self._plain = PlainEncoder(tokenizer, frozenset(self._ids.values()))
        unknown = tokenizer.token_id(tokenizer.named.get("unk_token", ""))
        self._forbidden = frozenset(self._ids.values()) - {unknown}

    def encode(self, text: str, mark: str) -> list[int]:
        """Ids of a rendered conversation. Raises a 400 error if the vocabulary can spell a marked control token only as itself."""
        ids: list[int] = []
        first = True
        for segment, control in self._segments(text):
            words = segment.replace(mark, "")
            if words:
                ids += self._text(words, first)
                first = False
            if control is not None:
                ids.append(control)
                first = False
        return ids

    def _text(self, words: str, first: bool) -> list[int]:
        ids = self._plain.encode(words, first=first)
        if not self._forbidden.isdisjoint(ids):
            raise invalid(
                "A message spells a control token that this model's vocabulary cannot write as ordinary text.",
                param="messages",
                code="control_token_in_text",
            )
        return ids

    def _segments(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Text up to each control token, then the token; the last piece has none."""
        position = 0
        for found in self._literals.pattern.finditer(text):
            token = self._ids[found[0]]
            added = self._added[token]
            start, end = found.span()
            if start < position or (added.single_word and _inside_word(text, start, end)):
                continue
            segment = text[position:start]
            yield segment.rstrip() if added.lstrip else segment, token
            position = end
            if added.rstrip:
                position += len(text[end:]) - len(text[end:].lstrip())
        yield text[position:], None


def free_character(text: str) -> str:
    """A character for private use that `text` does not contain."""
    used = set() if text.isascii() else set(text)
    for code in range(0xE000, 0xF900):
        if chr(code) not in used:
            return chr(code)
    raise invalid("The messages use every character that Unicode sets aside for private use.", param="messages")


def _inside_word(text: str, start: int, end: int) -> bool:
    neighbours = text[start - 1 : start] + text[end : end + 1]
    return any(char.isalnum() or char == "_" for char in neighbours)
