"""Text encoded piece by piece, between control tokens, so that pieces met before cost nothing: system prompts, earlier turns.

    <|im_start|> user\\nHi <|im_end|> \\n <|im_start|> assistant\\n      the library cuts here first, and encodes each piece alone

So a text's ids are those of its pieces, wherever a piece's ids do not depend on its place; elsewhere nothing is cut.
"""

from __future__ import annotations

import json
import re
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Final

from tokenizers import AddedToken
from tokenizers import Tokenizer as RawTokenizer

from inference_stack.core.errors import invalid
from inference_stack.frontend.literals import alternation

MEMORY_BYTES: Final = 8 << 20
"""Of remembered pieces, text and ids together; the longest unused are forgotten first."""
LONGEST_SHARE: Final = 1 / 8
"""A piece larger than this part of it is not remembered."""
PIECE_BYTES: Final = 200
"""What a piece takes besides its text and ids, about."""


def encode_batch(raw: RawTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, none added. Raises a 400 error where one is not Unicode (half of a surrogate pair).

    The library's batches, also of one text, let other threads run and count no offsets, which is a quarter of the work.
    """
    try:
        return [encoding.ids for encoding in raw.encode_batch_fast(list(texts), add_special_tokens=False)]
    except (UnicodeEncodeError, TypeError) as error:
        if all(map(_is_unicode, texts)):
            raise
        raise invalid(
            "The text holds half of a surrogate pair; it is not valid Unicode.", code="invalid_text"
        ) from error


class PieceEncoder:
    """Encodes text in which control tokens are tokens. `added` are the vocabulary's added tokens by id. Safe in any thread."""

    def __init__(self, raw: RawTokenizer, added: Mapping[int, AddedToken], memory_bytes: int = MEMORY_BYTES) -> None:
        self._raw = raw
        self._memory = PieceMemory(memory_bytes)
        self._cuts = _cuts(added) if _place_does_not_matter(raw) else {}
        self._pattern = re.compile(f"({alternation(sorted(self._cuts))})" if self._cuts else "(?!)")

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, as the library gives them. Raises as `encode_batch` does."""
        parts = self._pattern.split(text)
        if len(parts) == 1:
            return encode_batch(self._raw, parts)[0]
        pieces = [piece for piece in parts[::2] if piece]
        known = self._memory.known(pieces)
        unknown = list(dict.fromkeys(piece for piece in pieces if piece not in known))
        if unknown:
            new = dict(zip(unknown, encode_batch(self._raw, unknown), strict=True))
            self._memory.keep(new)
            known |= new
        ids: list[int] = []
        for place, part in enumerate(parts):
            if place % 2:
                ids.append(self._cuts[part])
            elif part:
                ids += known[part]
        return ids


class PieceMemory:
    """Ids by text, as many as `limit` bytes hold; those used last stay. Safe in any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ids: OrderedDict[str, array[int]] = OrderedDict()
        self._lock = Lock()
        self.size = 0

    def known(self, pieces: Iterable[str]) -> dict[str, Iterable[int]]:
        """The ids of those that are remembered."""
        found: dict[str, Iterable[int]] = {}
        with self._lock:
            for piece in pieces:
                ids = self._ids.get(piece)
                if ids is not None:
                    self._ids.move_to_end(piece)
                    found[piece] = ids
        return found

    def keep(self, pieces: Mapping[str, Sequence[int]]) -> None:
        """Remember these, and forget what is too much."""
        with self._lock:
            for text, ids in pieces.items():
                size = _size(text, len(ids))
                if text not in self._ids and size <= self._limit * LONGEST_SHARE:
                    self._ids[text] = array("I", ids)
                    self.size += size
            while self.size > self._limit:
                text, forgotten = self._ids.popitem(last=False)
                self.size -= _size(text, len(forgotten))


def _size(text: str, ids: int) -> int:
    return PIECE_BYTES + len(text) * (1 if text.isascii() else 4) + 4 * ids


def _cuts(added: Mapping[int, AddedToken]) -> dict[str, int]:
    """The control tokens' ids by their literals, at which any text may be cut: none if a literal takes spaces beside it along or
    minds what is beside it, or if another added token can begin before one and cover part of it."""
    raw = {token.content: (number, token) for number, token in added.items() if token.content and not token.normalized}
    if any(token.lstrip or token.rstrip or token.single_word for _, token in raw.values()):
        return {}
    cuts = {literal: number for literal, (number, token) in raw.items() if token.special}
    heads = {literal[:size] for literal in cuts for size in range(1, len(literal) + 1)}
    others = raw.keys() - cuts.keys()
    if any(word[place:] in heads for word in others for place in range(1, len(word))):
        return {}
    return {} if any(literal in word for word in others for literal in cuts) else cuts


def _place_does_not_matter(raw: RawTokenizer) -> bool:
    """Whether a piece is encoded the same at the beginning of a text and later on. Some mark the beginning of the first alone."""
    if raw.pre_tokenizer is None:
        return True
    told = json.dumps(json.loads(raw.pre_tokenizer.__getstate__()), separators=(",", ":"))
    return '"prepend_scheme":"first"' not in told


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
