"""Ids and bytes: encoding, decoding, and how single tokens are shown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_stack.core.errors import InferenceError
from inference_stack.frontend.tokenizer import EDGE, Tokenizer

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(text=texts)
def test_byte_level_text_survives(byte_level: Tokenizer, text: str) -> None:
    assert byte_level.decode(byte_level.encode(text), skip_special_tokens=False) == text


@given(text=texts)
def test_sentencepiece_text_survives(sentencepiece: Tokenizer, text: str) -> None:
    plain = text.replace("▁", "_")
    assert sentencepiece.decode(sentencepiece.encode(plain, allow_special=False)) == plain


@given(ids=st.lists(st.integers(0, 270), max_size=20), skip=st.booleans())
def test_decoding_equals_the_librarys_even_for_broken_bytes(byte_level: Tokenizer, ids: list[int], skip: bool) -> None:
    expected = byte_level.raw.decode(ids, skip_special_tokens=skip)
    assert byte_level.decode(ids, skip_special_tokens=skip) == expected


@given(text=texts)
def test_decoding_sentencepiece_equals_the_librarys_on_text(sentencepiece: Tokenizer, text: str) -> None:
    ids = sentencepiece.encode(text)
    assert sentencepiece.decode(ids) == sentencepiece.raw.decode(ids)


def test_special_tokens_in_a_prompt_are_tokens(byte_level: Tokenizer) -> None:
    assert byte_level.encode("<|im_end|>") == [byte_level.token_id("<|im_end|>")]


@given(text=texts, literal=st.sampled_from(["<|im_end|>", "<|im_start|>"]))
def test_special_tokens_are_text_where_not_allowed(byte_level: Tokenizer, text: str, literal: str) -> None:
    ids = byte_level.encode(text + literal + text, allow_special=False)
    assert byte_level.special_ids.isdisjoint(ids)
    assert byte_level.decode(ids) == text + literal + text


def test_user_defined_tokens_stay_tokens_in_plain_text(byte_level: Tokenizer) -> None:
    assert byte_level.encode("<think>", allow_special=False) == [byte_level.token_id("<think>")]


def test_beginning_of_text_goes_in_front_only_when_asked(sentencepiece: Tokenizer) -> None:
    assert sentencepiece.encode("hello") == [1, *sentencepiece.encode("hello", add_special_tokens=False)]


@pytest.mark.parametrize("length", [1, 10_000])
def test_half_a_surrogate_pair_is_refused(byte_level: Tokenizer, length: int) -> None:
    with pytest.raises(InferenceError) as refused:
        byte_level.encode("a" * length + "\ud800")
    assert refused.value.info.status == 400
    assert refused.value.info.code == "invalid_text"


def test_long_texts_are_encoded_like_short_ones(byte_level: Tokenizer) -> None:
    sentence = "hello world, think in ink\n"
    assert byte_level.encode(sentence * 1000) == byte_level.encode(sentence) * 1000


def test_part_of_a_character_is_shown_by_its_bytes(byte_level: Tokenizer) -> None:
    first, second = byte_level.encode("Ω")
    assert byte_level.token_bytes(first) + byte_level.token_bytes(second) == "Ω".encode()
    assert byte_level.token_text(first) == "\\xce"


def test_byte_fallback_tokens_stand_for_bytes(sentencepiece: Tokenizer) -> None:
    token = sentencepiece.token_id("<0xAB>")
    assert token is not None
    assert sentencepiece.token_bytes(token) == b"\xab"


def test_a_sentencepiece_token_shows_its_space(sentencepiece: Tokenizer) -> None:
    token = sentencepiece.token_id("▁hello")
    assert token is not None
    assert sentencepiece.token_text(token) == " hello"


@pytest.mark.parametrize("token", [-1, 10**6, 1 << 40])
def test_ids_outside_the_vocabulary_have_no_text(byte_level: Tokenizer, token: int) -> None:
    assert byte_level.token_bytes(token) == b""


def test_the_edge_never_becomes_a_token(byte_level: Tokenizer) -> None:
    assert all(token < byte_level.vocab_size for token in byte_level.encode(f"a{EDGE}b", allow_special=False))


@settings(max_examples=20)
@given(text=texts)
def test_tokens_of_a_decoder_without_byte_rule_have_bytes(wordpiece: Tokenizer, text: str) -> None:
    assert wordpiece.byte_rule is None
    assert all(wordpiece.token_bytes(token) for token in wordpiece.encode(text))
