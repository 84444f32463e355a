"""Encoding piece by piece: the same ids as the library's, with less and less work; and a memory that has its limits."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

from inference_stack.core.errors import InferenceError
from inference_stack.frontend import pieces
from inference_stack.frontend.load import Frontend
from inference_stack.frontend.pieces import PieceEncoder, PieceMemory
from inference_stack.frontend.tokenizer import Tokenizer

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<s>", "</s>", "<|end|>", "<|mid|>")
LETTERS = [
    "hello ",
    " world",
    "hell",
    "o",
    "\n",
    "  ",
    " ",
    "<|",
    "|>",
    "<",
    "<|im_",
    "é",
    "日本",
    "▁",
    "user\n",
    "1234",
]

conversations = st.lists(st.sampled_from(LETTERS) | st.sampled_from(SPECIALS), max_size=24).map("".join)


def library(raw: RawTokenizer, text: str) -> list[int]:
    """What the library makes of the whole text."""
    ids: list[int] = raw.encode(text, add_special_tokens=False).ids
    return ids


def byte_pairs(added: Iterable[AddedToken]) -> RawTokenizer:
    """A byte-level vocabulary with these tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = RawTokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_tokens(list(added))
    return raw


def encoder(raw: RawTokenizer) -> PieceEncoder:
    return PieceEncoder(raw, raw.get_added_tokens_decoder())


@given(text=conversations)
def test_byte_level_pieces_give_the_librarys_ids(byte_level: Tokenizer, text: str) -> None:
    fresh = encoder(byte_level.raw)
    assert fresh.encode(text) == fresh.encode(text) == library(byte_level.raw, text)


@given(text=conversations)
def test_sentencepiece_pieces_give_the_librarys_ids(sentencepiece: Tokenizer, text: str) -> None:
    fresh = encoder(sentencepiece.raw)
    assert fresh.encode(text) == fresh.encode(text) == library(sentencepiece.raw, text)


@given(text=conversations)
def test_tokens_that_swallow_spaces_give_the_librarys_ids(greedy_space: Tokenizer, text: str) -> None:
    fresh = encoder(greedy_space.raw)
    assert fresh.encode(text) == fresh.encode(text) == library(greedy_space.raw, text)


@given(text=conversations)
def test_the_demo_models_pieces_give_the_librarys_ids(smollm2: Frontend, text: str) -> None:
    raw = smollm2.tokenizer.raw
    fresh = encoder(raw)
    assert fresh.encode(text) == fresh.encode(text) == library(raw, text)


@pytest.mark.parametrize(
    "added",
    [
        [AddedToken("<a>", special=True, single_word=True)],
        [AddedToken("<a>", special=True), AddedToken("<a><b>", special=True), AddedToken("<b>", special=True)],
        [AddedToken("<a>", special=True), AddedToken("x<a", special=False, normalized=False)],
        [AddedToken("<a>", special=True), AddedToken("x<a>y", special=False, normalized=False)],
        [AddedToken("<a>", special=True), AddedToken("a>", special=False, normalized=False)],
        [AddedToken("<a>", special=True), AddedToken("x", special=False, normalized=True)],
        [AddedToken("<a>", special=True, normalized=True)],
        [AddedToken("<a>", special=True, lstrip=True), AddedToken("<b>", special=True)],
    ],
    ids=lambda added: " ".join(token.content for token in added),
)
@given(
    text=st.lists(st.sampled_from(["<a>", "<b>", "<a", "x", "y", " ", "a>", "<", "A", "\n"]), max_size=12).map("".join)
)
def test_awkward_tokens_give_the_librarys_ids(added: list[AddedToken], text: str) -> None:
    raw = byte_pairs(added)
    raw.normalizer = normalizers.Lowercase()
    assert encoder(raw).encode(text) == library(raw, text)


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@given(text=conversations)
def test_marks_of_a_beginning_give_the_librarys_ids(scheme: str, text: str) -> None:
    raw = RawTokenizer(models.BPE({"▁": 0, "h": 1, "e": 2, "l": 3, "o": 4, "▁h": 5}, [("▁", "h")]))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    raw.add_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    assert encoder(raw).encode(text) == library(raw, text)


def test_a_piece_met_before_is_not_encoded_again(byte_level: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    batch = pieces.encode_batch
    monkeypatch.setattr(pieces, "encode_batch", lambda raw, texts: asked.extend(texts) or batch(raw, texts))
    fresh = encoder(byte_level.raw)
    first = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    fresh.encode(first)
    assert asked == ["user\nhello", "\n", "assistant\n"]
    asked.clear()
    fresh.encode(first + "hi<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n")
    assert asked == ["assistant\nhi"]


def test_text_without_control_tokens_is_not_remembered(byte_level: Tokenizer) -> None:
    fresh = encoder(byte_level.raw)
    fresh.encode("hello world")
    assert fresh._memory.size == 0


def test_half_a_surrogate_pair_in_a_piece_is_refused(byte_level: Tokenizer) -> None:
    with pytest.raises(InferenceError, match="surrogate"):
        byte_level.encode("<|im_start|>user\n\ud800<|im_end|>")


def test_the_longest_unused_is_forgotten_and_the_limit_is_kept() -> None:
    memory = PieceMemory(10_000)
    memory.keep({"first": [1], "second": [2]})
    for number in range(100):
        memory.keep({f"piece {number}": list(range(50))})
        assert memory.known(["first"]) == {"first": memory.known(["first"])["first"]}
        assert memory.size <= 10_000
    assert list(memory.known(["first"])["first"]) == [1]
    assert not memory.known(["second", "piece 0"])
    assert memory.known(["piece 99"])


def test_a_huge_piece_is_not_remembered() -> None:
    memory = PieceMemory(10_000)
    memory.keep({"x" * 2_000: [1]})
    assert memory.size == 0


def test_many_threads_share_a_memory(byte_level: Tokenizer) -> None:
    fresh = PieceEncoder(byte_level.raw, byte_level.added, memory_bytes=4_000)
    texts = [f"<|im_start|>user\nhello {number % 37}<|im_end|>\n" for number in range(300)]
    wrong: list[str] = []

    def work() -> None:
        wrong.extend(text for text in texts if fresh.encode(text) != library(byte_level.raw, text))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and fresh._memory.size <= 4_000
