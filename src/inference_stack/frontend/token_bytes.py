"""What bytes a token stands for: the rule a vocabulary decodes by, read off its decoder.

Byte-level BPE and byte-fallback vocabularies decode token by token into bytes, so their text can be streamed exactly without
decoding anything twice. Other decoders (WordPiece, for example) have no such rule. Knows no text and no stream.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as RawTokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class ByteRule:
    """How a vocabulary spells bytes. `to_bytes` maps a token's spelling to its bytes; where `strip_first_space`, the text of a
    whole sequence loses one leading space (the one that tokenising put there)."""

    to_bytes: Callable[[str], bytes]
    strip_first_space: bool = False


def byte_rule(raw: RawTokenizer) -> ByteRule | None:
    """The byte rule of a tokenizer, None where its decoder does not work byte by byte."""
    if raw.decoder is None:
        return None
    steps = _steps(json.loads(raw.decoder.__getstate__()))
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteRule(_byte_level)
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and kinds[3:] in ([], ["Strip"]):
        return _fallback_rule(steps)
    return None


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _fallback_rule(steps: list[dict[str, Any]]) -> ByteRule | None:
    """SentencePiece's rule: a space is spelt by another character, and a byte without a token of its own `<0xAB>`."""
    pattern = steps[0]["pattern"].get("String")
    if pattern is None or (
        len(steps) == 4 and (steps[3]["content"], steps[3]["start"], steps[3]["stop"]) != (" ", 1, 0)
    ):
        return None
    content = steps[0]["content"]

    def to_bytes(spelling: str) -> bytes:
        byte = _BYTE_TOKEN.fullmatch(spelling)
        return bytes([int(byte[1], 16)]) if byte else spelling.replace(pattern, content).encode()

    return ByteRule(to_bytes, strip_first_space=len(steps) == 4)


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 characters spell their own byte, the other 68 bytes use U+0100 onwards, in order."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


def _byte_level(spelling: str) -> bytes:
    try:
        return bytes([_ALPHABET[char] for char in spelling])
    except KeyError:  # an added token, spelt as it is
        return spelling.encode()
