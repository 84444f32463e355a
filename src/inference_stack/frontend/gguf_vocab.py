"""Builds a tokenizer from a GGUF file's metadata: byte-level BPE with merges (`gpt2`), and SentencePiece's BPE by scores (`llama`).

Exact or not at all: a vocabulary kind or pre-tokenizer that cannot be reproduced is refused by name. Knows the keys
`tokenizer.*` of the metadata, and nothing of the file they came from.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, decoders, normalizers
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import BPE

from inference_stack.core.errors import unsupported_model
from inference_stack.frontend.pretokenizers import PRE_TOKENIZATIONS, PreTokenization
from inference_stack.frontend.tokenizer import Tokenizer

Metadata = Mapping[str, Any]

_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


class TokenType(enum.IntEnum):
    """What GGUF says of a vocabulary entry."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def gguf_tokenizer(metadata: Metadata) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describes. Raises `unsupported_model` naming what cannot be reproduced."""
    vocabulary = _Vocabulary(metadata)
    if vocabulary.model == "gpt2":
        raw, add_bos = _byte_level_bpe(vocabulary)
    elif vocabulary.model == "llama":
        raw, add_bos = _sentencepiece_bpe(vocabulary), True
    else:
        raise unsupported_model(
            f"The GGUF file's tokenizer is of kind {vocabulary.model!r} (tokenizer.ggml.model); supported are 'gpt2' and 'llama'."
        )
    bos, eos = vocabulary.token("bos_token_id"), vocabulary.token("eos_token_id")
    with_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos)) and bos is not None
    with_eos = bool(metadata.get("tokenizer.ggml.add_eos_token", False)) and eos is not None
    ends = [vocabulary.token(key) for key in _ENDS]
    return Tokenizer(
        raw,
        bos_id=bos,
        eos_ids=[token for token in ends if token is not None],
        prefix=(bos,) if with_bos and bos is not None else (),
        suffix=(eos,) if with_eos and eos is not None else (),
        named=vocabulary.named(),
    )


def gguf_templates(metadata: Metadata) -> dict[str, str]:
    """Chat templates by name; the usual one is called `default`."""
    prefix = "tokenizer.chat_template"
    templates = {key[len(prefix) + 1 :]: str(value) for key, value in metadata.items() if key.startswith(prefix + ".")}
    if prefix in metadata:
        templates["default"] = str(metadata[prefix])
    return templates


class _Vocabulary:
    """The arrays of the metadata, checked against one another."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self.model = str(self.get("model") or "")
        self.tokens: list[str] = list(self.get("tokens") or ())
        if not self.tokens:
            raise unsupported_model("The GGUF file has no vocabulary (tokenizer.ggml.tokens).")
        types = self.get("token_type")
        self.types = [TokenType.NORMAL] * len(self.tokens) if types is None else [int(kind) for kind in types]
        if len(self.types) != len(self.tokens):
            raise unsupported_model(f"The GGUF file names {len(self.tokens)} tokens but types of {len(self.types)}.")
        self.ids = {spelling: token for token, spelling in enumerate(self.tokens)}

    def get(self, key: str) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}")

    def token(self, key: str) -> int | None:
        """The token id in the metadata, None where absent or not of this vocabulary."""
        token = self.get(key)
        return int(token) if token is not None and 0 <= int(token) < len(self.tokens) else None

    def named(self) -> dict[str, str]:
        """Literals by the names that chat templates use."""
        found = {name: self.token(key) for name, key in _NAMED.items()}
        return {name: self.tokens[token] for name, token in found.items() if token is not None}

    def added(self) -> list[AddedToken]:
        """Tokens that are found in text before anything else happens to it, in id order."""
        kinds = {TokenType.CONTROL: True, TokenType.UNKNOWN: True, TokenType.USER_DEFINED: False}
        return [
            AddedToken(spelling, special=kinds[TokenType(kind)], normalized=False)
            for spelling, kind in zip(self.tokens, self.types, strict=True)
            if kind in kinds and spelling
        ]


def _byte_level_bpe(vocabulary: _Vocabulary) -> tuple[RawTokenizer, bool]:
    cut = _pre_tokenization(vocabulary)
    raw = RawTokenizer(_bpe(vocabulary, _merges(vocabulary), ignore_merges=cut.ignore_merges))
    raw.pre_tokenizer = cut.build()
    if cut.normalizer is not None:
        raw.normalizer = cut.normalizer()
    raw.decoder = decoders.ByteLevel()
    raw.add_tokens(vocabulary.added())
    return raw, cut.add_bos


def _bpe(vocabulary: _Vocabulary, merges: list[tuple[str, str]], **settings: Any) -> BPE:
    try:
        return BPE(vocabulary.ids, merges, **settings)
    except Exception as error:  # the library raises nothing more precise
        raise unsupported_model(f"The GGUF file's merges do not fit its vocabulary: {error}") from error


def _pre_tokenization(vocabulary: _Vocabulary) -> PreTokenization:
    name = vocabulary.get("pre")
    if name not in PRE_TOKENIZATIONS:
        what = "names no pre-tokenizer" if name is None else f"names the pre-tokenizer {name!r}"
        raise unsupported_model(
            f"The GGUF file {what} (tokenizer.ggml.pre), which cannot be reproduced. Known: {', '.join(PRE_TOKENIZATIONS)}."
        )
    return PRE_TOKENIZATIONS[name]


def _merges(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    merges = []
    for line in vocabulary.get("merges") or ():
        left, space, right = line.partition(" ")
        if not space:
            raise unsupported_model(
                f"The GGUF file has the merge {line!r}, which is not two tokens (tokenizer.ggml.merges)."
            )
        merges.append((left, right))
    return merges


def _sentencepiece_bpe(vocabulary: _Vocabulary) -> RawTokenizer:
    """SentencePiece BPE: adjacent pieces whose union has the best score are merged first; unknown characters become bytes."""
    unknown = vocabulary.token("unknown_token_id")
    if unknown is None:
        unknown = next((token for token, kind in enumerate(vocabulary.types) if kind == TokenType.UNKNOWN), None)
    unk_token = None if unknown is None else vocabulary.tokens[unknown]
    merges = _score_merges(vocabulary)
    raw = RawTokenizer(_bpe(vocabulary, merges, unk_token=unk_token, fuse_unk=True, byte_fallback=True))
    with_space = vocabulary.get("add_space_prefix") is not False
    spaces = normalizers.Replace(" ", "▁")
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if with_space else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    raw.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if with_space else steps)
    raw.add_tokens(vocabulary.added())
    return raw


def _score_merges(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Every way to make a piece out of two pieces, best score of the result first."""
    scores = vocabulary.get("scores")
    if scores is None or len(scores) != len(vocabulary.tokens):
        raise unsupported_model("The GGUF file's SentencePiece vocabulary has no scores (tokenizer.ggml.scores).")
    kinds = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
    ids = {spelling: token for spelling, token in vocabulary.ids.items() if vocabulary.types[token] in kinds}
    found: list[tuple[float, int, int, tuple[str, str]]] = []
    for piece, token in ids.items():
        score = -float(scores[token])
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                found.append((score, ids[left], ids[right], (left, right)))
    found.sort()
    return [pair for *_, pair in found]
