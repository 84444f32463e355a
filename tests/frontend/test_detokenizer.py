"""Text as tokens come: exact, whatever the tokens are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_stack.frontend.detokenizer import detokenizer
from inference_stack.frontend.tokenizer import Tokenizer

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def streamed(tokenizer: Tokenizer, ids: list[int], prompt: tuple[int, ...] = (), skip: bool = True) -> list[str]:
    stream = detokenizer(tokenizer, prompt, skip_special_tokens=skip)
    return [*(stream.feed(token) for token in ids), stream.flush()]


@given(ids=st.lists(st.integers(0, 272), max_size=40), skip=st.booleans())
def test_deltas_add_up_to_the_decoded_text_for_any_bytes(byte_level: Tokenizer, ids: list[int], skip: bool) -> None:
    assert "".join(streamed(byte_level, ids, skip=skip)) == byte_level.raw.decode(ids, skip_special_tokens=skip)


@given(ids=st.lists(st.integers(0, 285), max_size=40), skip=st.booleans())
def test_deltas_add_up_for_byte_fallback(sentencepiece: Tokenizer, ids: list[int], skip: bool) -> None:
    assert "".join(streamed(sentencepiece, ids, skip=skip)) == sentencepiece.decode(ids, skip_special_tokens=skip)


@given(text=texts)
def test_no_delta_holds_part_of_a_character(byte_level: Tokenizer, text: str) -> None:
    deltas = streamed(byte_level, byte_level.encode(text, allow_special=False))
    assert "".join(deltas) == text
    assert "\ufffd" in text or not any("\ufffd" in delta for delta in deltas)


@given(before=texts, after=texts)
def test_text_after_a_prompt_is_what_it_adds_to_the_prompt(sentencepiece: Tokenizer, before: str, after: str) -> None:
    prompt = tuple(sentencepiece.encode(before))
    ids = sentencepiece.encode(after, add_special_tokens=False)
    added = "".join(streamed(sentencepiece, ids, prompt))
    assert sentencepiece.decode(prompt) + added == sentencepiece.decode([*prompt, *ids])


def test_the_first_space_stays_after_a_prompt(sentencepiece: Tokenizer) -> None:
    prompt = tuple(sentencepiece.encode("hello"))
    assert "".join(streamed(sentencepiece, sentencepiece.encode("hello", add_special_tokens=False), prompt)) == " hello"


def test_a_character_begun_in_the_prompt_is_completed(byte_level: Tokenizer) -> None:
    first, second = byte_level.encode("Ω")
    assert streamed(byte_level, [second], (first,)) == ["Ω", ""]


def test_an_unfinished_character_is_held_back_and_replaced_at_the_end(byte_level: Tokenizer) -> None:
    assert streamed(byte_level, byte_level.encode("Ω")[:1]) == ["", "\ufffd"]


@given(ids=st.lists(st.integers(0, 272), max_size=30), cut=st.integers(0, 30))
def test_it_can_be_rebuilt_from_emitted_tokens(byte_level: Tokenizer, ids: list[int], cut: int) -> None:
    original, rebuilt = detokenizer(byte_level), detokenizer(byte_level)
    for token in ids[:cut]:
        original.feed(token)
    for token in ids[:cut]:
        rebuilt.feed(token)
    rest = ids[cut:]
    assert [original.feed(token) for token in rest] == [rebuilt.feed(token) for token in rest]
    assert original.flush() == rebuilt.flush()


@given(ids=st.lists(st.integers(1, 6), min_size=1, max_size=20))
def test_other_decoders_stream_through_the_library(wordpiece: Tokenizer, ids: list[int]) -> None:
    assert "".join(streamed(wordpiece, ids)) == wordpiece.raw.decode(ids)


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_are_shown_only_when_asked(byte_level: Tokenizer, skip: bool) -> None:
    ids = byte_level.encode("h<|im_start|>i")
    assert "".join(streamed(byte_level, ids, skip=skip)) == ("hi" if skip else "h<|im_start|>i")
