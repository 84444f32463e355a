"""Streams of made-up tokens: the same wherever they are read from, and different where they should be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_stack.core.errors import InferenceError
from inference_stack.simulator.api import Segment
from inference_stack.simulator.tokens import FIRST_TOKEN, derive, mix64, prompt_tokens, stream, token

VOCAB = 50_000
numbers = st.integers(0, 2**64 - 1)
starts = st.integers(0, 2**40)
counts = st.integers(0, 300)
segments = st.builds(Segment, numbers, starts, counts)


@given(numbers, starts, st.integers(FIRST_TOKEN + 1, 2**31 - 1))
def test_one_token_is_the_streams_token_at_that_place(source: int, start: int, vocab: int) -> None:
    expected = [token(source, start + k, vocab) for k in range(20)]
    assert stream(source, start, 20, vocab).tolist() == expected


@given(numbers, starts, st.integers(FIRST_TOKEN + 1, 200))
def test_tokens_stay_inside_the_vocabulary_and_off_the_special_ones(source: int, start: int, vocab: int) -> None:
    found = stream(source, start, 500, vocab)
    assert found.dtype == np.int32 and found.shape == (500,)
    assert found.min() >= FIRST_TOKEN and found.max() < vocab


@given(numbers, starts, counts, counts)
def test_a_later_start_reads_the_same_stream(source: int, start: int, skip: int, count: int) -> None:
    whole = stream(source, start, skip + count, VOCAB)
    assert np.array_equal(whole[skip:], stream(source, start + skip, count, VOCAB))


@given(st.lists(segments, max_size=8))
def test_a_prompt_is_its_pieces_in_order(pieces: list[Segment]) -> None:
    expected = [int(t) for piece in pieces for t in stream(*piece, VOCAB)]
    assert prompt_tokens(pieces, VOCAB) == tuple(expected)


@given(st.lists(st.builds(Segment, st.integers(0, 3), st.integers(0, 3), st.just(12)), min_size=2, max_size=2))
def test_pieces_are_equal_exactly_where_their_tokens_are(pair: list[Segment]) -> None:
    first, second = (prompt_tokens([piece], VOCAB) for piece in pair)
    assert (first == second) == (pair[0] == pair[1])


def test_all_tokens_of_the_vocabulary_come_about_equally_often() -> None:
    span = 100
    found = np.bincount(stream(7, 0, 100 * span * 10, FIRST_TOKEN + span) - FIRST_TOKEN, minlength=span)
    assert found.min() > 850 and found.max() < 1150


def test_neighbouring_streams_have_no_more_in_common_than_chance_allows() -> None:
    first, second = stream(1, 0, 100_000, FIRST_TOKEN + 100), stream(2, 0, 100_000, FIRST_TOKEN + 100)
    assert 800 < int((first == second).sum()) < 1200


def test_a_vocabulary_of_special_tokens_only_is_refused() -> None:
    with pytest.raises(InferenceError, match="a vocabulary of 16"):
        stream(1, 0, 4, FIRST_TOKEN)


def test_mixing_is_one_to_one() -> None:
    assert len({mix64(value) for value in range(20_000)}) == 20_000


@given(st.lists(numbers, max_size=4), st.lists(numbers, max_size=4))
def test_derived_numbers_differ_where_names_do(left: list[int], right: list[int]) -> None:
    assert (derive(*left) == derive(*right)) == (left == right)
