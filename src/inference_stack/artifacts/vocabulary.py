"""Which vocabulary a model's tokens are of, as a short digest: equal for equal spellings, whatever the container.

Only tokens that are plain words count: special and padding tokens differ between conversions of one model, words do not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

from inference_stack.artifacts.files import ModelFiles
from inference_stack.artifacts.gguf import GgufFile

DIGEST_BYTES: Final = 8
GGUF_NORMAL: Final = 1
WORD: Final = re.compile("[Ġ▁ ]?[A-Za-z]+")
"""Letters, after a space as byte-level vocabularies spell it, or SentencePiece's, or none."""

Spelling = tuple[int, str]
"""A token's id and how it is spelt."""


def vocabulary_digest(files: ModelFiles) -> str:
    """The digest of all words and their ids; empty where the files do not tell. Raises `unsupported_model` for broken ones."""
    if files.kind == "gguf":
        with GgufFile(files.weights[0]) as container:
            return _digest(_gguf_spellings(container.metadata))
    return _digest(hf_spellings(files.json("tokenizer.json") or {}))


def hf_spellings(tokenizer: Mapping[str, Any]) -> list[Spelling]:
    """Those in a tokenizer.json, but for added tokens: BPE and WordPiece map spellings, Unigram lists them with scores."""
    model = tokenizer.get("model")
    listed = model.get("vocab") if isinstance(model, dict) else None
    added = {entry.get("id") for entry in tokenizer.get("added_tokens") or ()}
    if isinstance(listed, dict):
        pairs = [(token, spelling) for spelling, token in listed.items()]
    else:
        pairs = [(token, entry[0]) for token, entry in enumerate(listed or ())]
    return [(token, spelling) for token, spelling in pairs if token not in added]


def _gguf_spellings(metadata: Mapping[str, Any]) -> list[Spelling]:
    """Those in a GGUF file's metadata, but for special, unused and byte tokens."""
    listed = metadata.get("tokenizer.ggml.tokens", ())
    kinds = metadata.get("tokenizer.ggml.token_type")
    return [(token, text) for token, text in enumerate(listed) if kinds is None or kinds[token] == GGUF_NORMAL]


def _digest(spellings: list[Spelling]) -> str:
    words = sorted((token, text) for token, text in spellings if WORD.fullmatch(text))
    listed = "\n".join(f"{token} {text}" for token, text in words)
    return hashlib.blake2b(listed.encode(), digest_size=DIGEST_BYTES).hexdigest() if words else ""
