"""Text to token ids and back, over the `tokenizers` library.

A `Tokenizer` is what was read from a model's files: vocabulary, special tokens, which of them belong around a text. Reading
those files is the business of `load` and `gguf_vocab`; control tokens inside chat messages that of `control`.
Every method may be called from several threads at once; encoding a long text lets the others run meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from tokenizers import AddedToken
from tokenizers import Tokenizer as RawTokenizer

from inference_stack.frontend.pieces import PieceEncoder, encode_batch
from inference_stack.frontend.token_bytes import byte_rule

EDGE = "\ufdd0\ufdd1\ufdd0"
"""Stands before a piece of text to say that it is not the beginning. Made of code points that no text may contain."""


class Tokenizer:
    """A vocabulary with its special tokens.

    `bos_id` and `eos_ids` are what the model's files name; `prefix` and `suffix` the ids that belong around a text that is
    encoded with `add_special_tokens`. `named` maps names that chat templates use (`bos_token`, …) to their literals.
    """

    def __init__(
        self,
        raw: RawTokenizer,
        *,
        bos_id: int | None = None,
        eos_ids: Iterable[int] = (),
        prefix: Sequence[int] = (),
        suffix: Sequence[int] = (),
        named: dict[str, str] | None = None,
    ) -> None:
        self.raw = raw
        self.bos_id = bos_id
        self.eos_ids = tuple(dict.fromkeys(eos_ids))
        self.prefix, self.suffix = tuple(prefix), tuple(suffix)
        self.named = dict(named or {})
        self.added: dict[int, AddedToken] = raw.get_added_tokens_decoder()
        self.special_ids = frozenset(token for token, added in self.added.items() if added.special)
        self.vocab_size = raw.get_vocab_size(with_added_tokens=True)
        self.byte_rule = byte_rule(raw)
        self._pieces = PieceEncoder(raw, self.added)
        self._plain = PlainEncoder(self, self.special_ids)
        self._bytes: dict[int, bytes] = {}

    def encode(self, text: str, *, add_special_tokens: bool = True, allow_special: bool = True) -> list[int]:
        """The ids of `text`. With `allow_special` a special token's literal in the text is that token; without, it is text.

        Raises a 400 error where the text is not Unicode (half of a surrogate pair).
        """
        ids = self._pieces.encode(text) if allow_special else self._plain.encode(text, first=True)
        return [*self.prefix, *ids, *self.suffix] if add_special_tokens else ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD. Ids outside the vocabulary have no text."""
        rule = self.byte_rule
        if rule is None:
            return self.raw.decode(list(ids), skip_special_tokens=skip_special_tokens)
        skipped: Collection[int] = self.special_ids if skip_special_tokens else ()
        text = b"".join([self.token_bytes(token) for token in ids if token not in skipped]).decode(errors="replace")
        return text[1:] if rule.strip_first_space and text.startswith(" ") else text

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token adds to a text. For decoders without a byte rule: those of the token decoded alone."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._spell(token)
        return known

    def token_text(self, token: int) -> str:
        """A token for people and for logprobs: its text, with bytes that are not UTF-8 on their own written `\\xf0`."""
        return self.token_bytes(token).decode(errors="backslashreplace")

    def token_id(self, literal: str) -> int | None:
        """The id of a token's spelling in the vocabulary, None where there is none."""
        return self.raw.token_to_id(literal)

    def spelling(self, token: int) -> str | None:
        """A token as the vocabulary spells it, None outside the vocabulary."""
        return self.raw.id_to_token(token) if 0 <= token < 1 << 32 else None

    def _spell(self, token: int) -> bytes:
        spelling = self.spelling(token)
        if spelling is None:
            return b""
        if self.byte_rule is not None:
            return self.byte_rule.to_bytes(spelling)
        return self.raw.decode([token], skip_special_tokens=False).encode()


class PlainEncoder:
    """Encodes text in which the tokens `ignored` cannot occur: what spells one of them comes out as ordinary tokens.

    The other added tokens are found as ever. Shares the vocabulary of `tokenizer`.
    """

    def __init__(self, tokenizer: Tokenizer, ignored: Collection[int]) -> None:
        source = tokenizer.raw
        raw = RawTokenizer(source.model)
        if source.normalizer is not None:
            raw.normalizer = source.normalizer
        if source.pre_tokenizer is not None:
            raw.pre_tokenizer = source.pre_tokenizer
        raw.add_tokens([_copy(tokenizer.added[token], token in ignored) for token in sorted(tokenizer.added)])
        raw.add_tokens([AddedToken(EDGE, normalized=False, special=False)])
        raw.encode_special_tokens = True
        self._raw = raw
        self._edge = raw.token_to_id(EDGE)

    def encode(self, text: str, *, first: bool) -> list[int]:
        """The ids of a piece of text; not the `first` piece, it gets no marks of a beginning (SentencePiece's space)."""
        ids = encode_batch(self._raw, [text if first else EDGE + text])[0]
        return [token for token in ids if token != self._edge] if self._edge in ids else ids


def _copy(token: AddedToken, special: bool) -> AddedToken:
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=special,
    )
