"""How byte-level BPE vocabularies cut text before merging, by the names that GGUF files use.

Each entry is a property of a published tokenizer (its regular expressions, whether whole words bypass the merges, whether a
beginning-of-text token goes in front). A name that is not here is refused by `gguf_vocab`: a guess would change tokens silently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Regex, normalizers
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Punctuation, Sequence, Split

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_SYMBOLS}"
)
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|{_SYMBOLS}"
)  # fmt: skip
_CJK = r"[一-龥\u0800-\u4e00가-\ud7ff]+"


@dataclass(frozen=True, slots=True)
class PreTokenization:
    """One way to cut. `build` makes the pre-tokenizer (it may compile regular expressions, so it is made when needed)."""

    build: Callable[[], PreTokenizer]
    ignore_merges: bool = False
    add_bos: bool = False
    normalizer: Callable[[], Normalizer] | None = None


def _gpt2() -> PreTokenizer:
    return ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> PreTokenizer:
    return Sequence([Digits(individual_digits=True), _gpt2()])


def _regex(*patterns: str) -> Callable[[], PreTokenizer]:
    def build() -> PreTokenizer:
        cuts: list[PreTokenizer] = [Split(Regex(pattern), behavior="isolated") for pattern in patterns]
        return Sequence([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])

    return build


def _falcon() -> PreTokenizer:
    three_digits = Split(Regex("[0-9][0-9][0-9]"), behavior="isolated")
    return Sequence([Punctuation(behavior="contiguous"), _gpt2(), Digits(individual_digits=False), three_digits])


def _deepseek_coder() -> PreTokenizer:
    cuts = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK]
    split: list[PreTokenizer] = [Split(Regex(cut), behavior="isolated") for cut in cuts]
    return Sequence([*split, Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=False)])


_NFC = normalizers.NFC
_GPT2 = PreTokenization(_gpt2)
_DIGITS = PreTokenization(_single_digits)
_LLAMA = PreTokenization(_regex(_LLAMA3), ignore_merges=True, add_bos=True)
_QWEN = PreTokenization(_regex(_QWEN2), normalizer=_NFC)

PRE_TOKENIZATIONS: dict[str, PreTokenization] = {
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "mpt": PreTokenization(_gpt2, normalizer=_NFC),
    "olmo": PreTokenization(_gpt2, normalizer=_NFC),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": PreTokenization(_single_digits, normalizer=_NFC),
    "llama-bpe": _LLAMA,
    "llama3": _LLAMA,
    "llama-v3": _LLAMA,
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "qwen35": PreTokenization(_regex(_QWEN35)),
    "gpt-4o": PreTokenization(_regex(_O200K)),
    "tekken": PreTokenization(_regex(_TEKKEN), ignore_merges=True, add_bos=True),
    "falcon": PreTokenization(_falcon),
    "deepseek-coder": PreTokenization(_deepseek_coder),
    "deepseek-v3": PreTokenization(
        _regex(
            r"\p{N}{1,3}",
            r"[一-龥\u3040-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ),
}
