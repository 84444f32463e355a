"""Tokenizers out of GGUF metadata."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_stack.core.errors import InferenceError
from inference_stack.frontend.gguf_vocab import gguf_templates, gguf_tokenizer
from inference_stack.frontend.pretokenizers import PRE_TOKENIZATIONS
from inference_stack.frontend.tokenizer import Tokenizer
from tests.frontend.vocabularies import byte_level_metadata, sentencepiece_metadata


def sentencepiece_by_hand(text: str, metadata: dict[str, list]) -> list[str]:
    """The algorithm as it is defined: merge the adjacent pair whose union scores best, leftmost first, until none is a piece."""
    scores = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True))
    pieces = list("▁" + text.replace(" ", "▁"))
    while True:
        joined = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in scores]
        if not joined:
            return pieces
        _, at = min(joined)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


@given(text=st.text("helowrd ", min_size=1, max_size=30))
def test_sentencepiece_merges_by_score(sentencepiece: Tokenizer, text: str) -> None:
    ids = sentencepiece.encode(text, add_special_tokens=False)
    assert [sentencepiece.spelling(token) for token in ids] == sentencepiece_by_hand(text, sentencepiece_metadata())


def test_merges_apply_in_byte_level_vocabularies(byte_level: Tokenizer) -> None:
    assert [byte_level.spelling(token) for token in byte_level.encode("hello wo")] == ["hello", "Ġwo"]


def test_ids_are_the_files(byte_level: Tokenizer) -> None:
    tokens = byte_level_metadata()["tokenizer.ggml.tokens"]
    assert [byte_level.spelling(token) for token in range(len(tokens))] == tokens
    assert byte_level.vocab_size == len(tokens)


@pytest.mark.parametrize(("flag", "expected"), [(True, True), (False, False), (None, False)])
def test_a_beginning_token_is_added_when_the_file_says_so(flag: bool | None, expected: bool) -> None:
    metadata = byte_level_metadata()
    if flag is not None:
        metadata["tokenizer.ggml.add_bos_token"] = flag
    tokenizer = gguf_tokenizer(metadata)
    assert (tokenizer.encode("h")[0] == tokenizer.bos_id) is expected


def test_an_end_token_is_added_when_the_file_says_so() -> None:
    tokenizer = gguf_tokenizer(byte_level_metadata() | {"tokenizer.ggml.add_eos_token": True})
    assert tokenizer.encode("h")[-1] == tokenizer.eos_ids[0]


def test_an_end_of_turn_token_ends_too() -> None:
    metadata = byte_level_metadata()
    other = metadata["tokenizer.ggml.tokens"].index("<|endoftext|>")
    tokenizer = gguf_tokenizer(metadata | {"tokenizer.ggml.eot_token_id": other})
    assert tokenizer.eos_ids == (metadata["tokenizer.ggml.eos_token_id"], other)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("tokenizer.ggml.pre", "made-up", "made-up"),
        ("tokenizer.ggml.model", "t5", "t5"),
        ("tokenizer.ggml.tokens", [], "tokenizer.ggml.tokens"),
        ("tokenizer.ggml.token_type", [1], "types of 1"),
        ("tokenizer.ggml.merges", ["nospace"], "nospace"),
        ("tokenizer.ggml.merges", ["no such"], "merges do not fit"),
    ],
)
def test_what_cannot_be_reproduced_is_refused_by_name(key: str, value: object, named: str) -> None:
    with pytest.raises(InferenceError, match=named) as refused:
        gguf_tokenizer(byte_level_metadata() | {key: value})
    assert refused.value.info.code == "unsupported_model"


def test_a_sentencepiece_vocabulary_without_scores_is_refused() -> None:
    metadata = sentencepiece_metadata()
    del metadata["tokenizer.ggml.scores"]
    with pytest.raises(InferenceError, match="scores"):
        gguf_tokenizer(metadata)


@pytest.mark.parametrize("name", PRE_TOKENIZATIONS)
def test_every_known_pre_tokenizer_keeps_text(name: str) -> None:
    tokenizer = gguf_tokenizer(
        byte_level_metadata() | {"tokenizer.ggml.pre": name, "tokenizer.ggml.add_bos_token": False}
    )
    text = "It's 12345  tokens,\r\n\n\tnaïve Ünïcode 你好 🦙!! don'T x_1 /a/b"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("gpt-2", "it's 1234!", ["it", "'s", " 1234", "!"]),
        ("smollm", "in 123", ["in", " ", "1", "2", "3"]),
        ("llama-bpe", "IT'S 12345\n\n x", ["IT", "'S", " ", "123", "45", "\n\n", " x"]),
        ("qwen2", "a 123", ["a", " ", "1", "2", "3"]),
        ("deepseek-v3", "a,b 1234", ["a", ",b", " ", "123", "4"]),
        ("falcon", "a--b 12345", ["a", "--", "b", " ", "123", "45"]),
        ("tekken", "HelloWorld 12", ["Hello", "World", " ", "1", "2"]),
    ],
)
def test_text_is_cut_as_published(name: str, text: str, pieces: list[str]) -> None:
    cut = PRE_TOKENIZATIONS[name].build().pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in cut] == pieces


def test_templates_are_found_by_name() -> None:
    found = gguf_templates(
        {"tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "b", "tokenizer.chat_templates": ["x"]}
    )
    assert found == {"default": "a", "tool_use": "b"}
