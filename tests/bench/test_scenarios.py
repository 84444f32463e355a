"""Prompts of exact length that share nothing, and numbers from known arrival times."""

from __future__ import annotations

import itertools
import random

import pytest
from bench.peers.scenarios import FULL, Ask, Reply, Words, batches, check, numbers, warm_up

LETTERS = "abcdefghij"
VOCABULARY = {f" {''.join(letters)}": number for number, letters in enumerate(itertools.product(LETTERS, repeat=3))}


def encode(text: str) -> list[int]:
    """One token per known word; a letter of an unknown one is a token."""
    out: list[int] = []
    for word in text.split(" ")[1:]:
        known = VOCABULARY.get(f" {word}")
        out += [known] if known is not None else [5000 + ord(letter) for letter in word]
    return out


@pytest.fixture
def words() -> Words:
    return Words(VOCABULARY, encode)


def test_prompts_have_exactly_the_length_asked_for(words: Words) -> None:
    text, ids = words.draw(1000, random.Random(3))
    assert len(ids) == 1000
    assert tuple(encode(text)) == ids


def test_words_that_are_several_tokens_are_left_out() -> None:
    odd = {" zzz": 1, "abc": 2, " Abc": 3, " a1c": 4, " äbc": 5}
    words = Words({**VOCABULARY, **odd}, encode)
    text, _ = words.draw(20_000, random.Random(0))
    assert set(text.split()) <= {word.strip() for word in VOCABULARY}


def test_a_vocabulary_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="only 2"):
        Words([" abc", " abd"], encode)


def test_a_tokenizer_that_joins_words_is_refused() -> None:
    words = Words(VOCABULARY, lambda text: encode(text)[:5])
    with pytest.raises(ValueError, match="apart"):
        words.draw(10, random.Random(0))


def test_batches_have_the_sizes_of_their_scenarios(words: Words) -> None:
    made = batches(words, FULL, 1)
    shapes = {name: (len(asked), len(asked[0].ids), asked[0].max_tokens) for name, asked in made.items()}
    assert shapes == {
        "single": (1, 128, 128),
        "cold": (1, 1000, 4),
        "warm": (1, 1012, 4),
        "at_once_8": (8, 128, 64),
        "at_once_32": (32, 128, 64),
    }


def test_equal_seeds_make_equal_prompts_and_others_do_not(words: Words) -> None:
    assert batches(words, FULL, 1) == batches(words, FULL, 1)
    assert batches(words, FULL, 1) != batches(words, FULL, 2)


def test_warm_repeats_the_cold_prompt_and_adds_a_tail(words: Words) -> None:
    made = batches(words, FULL, 4)
    [cold], [warm] = made["cold"], made["warm"]
    assert warm.ids[:1000] == cold.ids
    assert warm.text.startswith(cold.text)


def test_no_other_prompts_share_a_beginning(words: Words) -> None:
    made = [batches(words, FULL, seed) for seed in range(5)]
    prompts = [ask.ids for batch in made for name, asked in batch.items() if name != "warm" for ask in asked]
    prompts += [ask.ids for asked in warm_up(words, 1_000_000) for ask in asked]
    assert len({ids[:8] for ids in prompts}) == len(prompts)


def test_decode_rate_leaves_the_first_token_out() -> None:
    reply = Reply(events=[5.0, 5.5, 6.0], output_tokens=3)
    assert numbers("single", [reply]) == {"decode_tokens_per_s": 2.0}


def test_time_to_first_token_is_in_milliseconds() -> None:
    reply = Reply(events=[0.25, 0.5], output_tokens=2)
    assert numbers("cold", [reply]) == {"ttft_ms": 250.0}
    assert numbers("warm", [reply]) == {"warm_ttft_ms": 250.0}


def test_throughput_counts_all_tokens_until_the_last_one_arrives() -> None:
    replies = [Reply(events=[0.5, 2.0], output_tokens=64), Reply(events=[0.5, 4.0], output_tokens=64)]
    assert numbers("at_once_8", replies) == {"tokens_per_s_8": 32.0}


def asked(tokens: int) -> list[Ask]:
    return [Ask(text=" aaa", ids=(0,), max_tokens=tokens)]


def test_a_complete_stream_passes() -> None:
    check(asked(3), [Reply(events=[1.0, 2.0, 3.0], prompt_tokens=1, output_tokens=3)])


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (Reply(events=[1.0], prompt_tokens=2, output_tokens=20), "counted as 2"),
        (Reply(events=[1.0], prompt_tokens=1, output_tokens=19), "19 tokens"),
        (Reply(events=[1.0, 2.0], prompt_tokens=1, output_tokens=20), "not a stream"),
        (Reply(events=[], prompt_tokens=1, output_tokens=20), "not a stream"),
    ],
)
def test_a_reply_that_is_not_what_was_asked_for_is_refused(reply: Reply, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check(asked(20), [reply])
