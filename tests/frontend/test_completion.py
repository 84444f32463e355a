"""One choice's output out of token deltas."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference_stack.core.request import FinishReason
from inference_stack.core.step import TokenLogprob
from inference_stack.frontend.completion import TextAssembler, TextDelta, TextOptions, TokenEntry, prompt_entries
from inference_stack.frontend.tokenizer import Tokenizer

ids = st.lists(st.integers(0, 272), max_size=25)


def logprobs(tokens: list[int]) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(token=token, logprob=-1.0, rank=1, top=((token, -1.0),)) for token in tokens)


def run(
    tokenizer: Tokenizer, tokens: list[int], options: TextOptions, cuts: tuple[int, ...] = (), finish: str = "length"
) -> tuple[str, list[TokenEntry], TextDelta, int]:
    """Feed `tokens` in the chunks that `cuts` make; text, entries, last answer and token count."""
    assembler = TextAssembler(tokenizer, (), options)
    edges = [0, *sorted(min(cut, len(tokens)) for cut in cuts), len(tokens)]
    text, entries = "", []
    for index in range(len(edges) - 1):
        chunk = tokens[edges[index] : edges[index + 1]]
        end = FinishReason(finish) if index == len(edges) - 2 else None
        delta = assembler.feed(chunk, logprobs(chunk), end)
        text, entries = text + delta.text, [*entries, *delta.entries]
        if delta.finish is not None:
            return text, entries, delta, assembler.tokens
    raise AssertionError("the completion never ended")


@given(
    tokens=ids,
    cuts=st.lists(st.integers(0, 25), max_size=5),
    stop=st.sampled_from([(), ("h",), ("hell", "lo"), ("\ufffd",)]),
)
def test_chunks_do_not_matter(byte_level: Tokenizer, tokens: list[int], cuts: list[int], stop: tuple[str, ...]) -> None:
    options = TextOptions(stop=stop)
    text, entries, last, count = run(byte_level, tokens, options)
    other_text, other_entries, other_last, other_count = run(byte_level, tokens, options, tuple(cuts))
    assert (other_text, other_entries, other_count) == (text, entries, count)
    assert (other_last.finish, other_last.stop_reason) == (last.finish, last.stop_reason)


@given(tokens=ids)
def test_without_stops_the_text_is_the_decoded_text(byte_level: Tokenizer, tokens: list[int]) -> None:
    text, entries, last, count = run(byte_level, tokens, TextOptions())
    assert text == byte_level.decode(tokens)
    assert [entry.token for entry in entries] == tokens
    assert (last.finish, count) == (FinishReason.LENGTH, len(tokens))


@given(tokens=ids, cut=st.integers(0, 25), stop=st.sampled_from([(), ("hell",), ("wo",)]))
def test_it_can_be_rebuilt_from_emitted_tokens(
    byte_level: Tokenizer, tokens: list[int], cut: int, stop: tuple[str, ...]
) -> None:
    original, rebuilt = (TextAssembler(byte_level, (), TextOptions(stop=stop)) for _ in range(2))
    for token in tokens[:cut]:
        original.feed([token], logprobs([token]))
    rebuilt.feed(tokens[:cut], logprobs(tokens[:cut]))
    rest = tokens[cut:]
    last = FinishReason.LENGTH
    assert original.feed(rest, logprobs(rest), last) == rebuilt.feed(rest, logprobs(rest), last)
    assert original.tokens == rebuilt.tokens


def test_a_stop_token_has_no_text_but_counts(byte_level: Tokenizer) -> None:
    end = byte_level.eos_ids[0]
    tokens = [*byte_level.encode("hello"), end]
    options = TextOptions(stop_token_ids={end}, skip_special_tokens=False)
    text, entries, last, count = run(byte_level, tokens, options, finish="stop")
    assert (text, last.stop_reason, count) == ("hello", end, len(tokens))
    assert [entry.token for entry in entries] == tokens[:-1]


def test_a_stop_token_that_ended_nothing_is_shown(byte_level: Tokenizer) -> None:
    end = byte_level.eos_ids[0]
    options = TextOptions(stop_token_ids={end}, skip_special_tokens=False)
    assert run(byte_level, [end], options)[0] == "<|im_end|>"


def test_a_stop_string_ends_at_the_token_that_completes_it(byte_level: Tokenizer) -> None:
    tokens = byte_level.encode("h i n k wo")
    text, entries, last, count = run(byte_level, tokens, TextOptions(stop=("n k",)))
    assert (text, last.finish, last.stop_reason) == ("h i ", FinishReason.STOP, "n k")
    assert byte_level.decode(tokens[:count]) == "h i n k"
    assert "".join(entry.text for entry in entries) == "h i "


def test_a_stop_string_is_kept_when_asked(byte_level: Tokenizer) -> None:
    options = TextOptions(stop=("in",), include_stop_str_in_output=True)
    assert run(byte_level, byte_level.encode("think"), options)[0] == "thin"


def test_stop_strings_wait_for_min_tokens(byte_level: Tokenizer) -> None:
    tokens = byte_level.encode("a a a a")
    text, _, last, count = run(byte_level, tokens, TextOptions(stop=("a",), min_tokens=4))
    assert (count, last.stop_reason) == (5, "a")
    assert text == "a a "


def test_after_its_end_a_completion_does_not_change(byte_level: Tokenizer) -> None:
    assembler = TextAssembler(byte_level, (), TextOptions(stop=("h",)))
    assert assembler.feed(byte_level.encode("h")).finish is FinishReason.STOP
    assert assembler.feed(byte_level.encode("hello"), finish=FinishReason.LENGTH) == TextDelta()
    assert assembler.tokens == 1


def test_entries_come_with_the_text_of_their_token(byte_level: Tokenizer) -> None:
    assembler = TextAssembler(byte_level, (), TextOptions(stop=("ab!",)))
    a, b, c = byte_level.encode("abc")
    assert assembler.feed([a], logprobs([a])).entries == ()
    assert assembler.feed([b], logprobs([b])).entries == ()
    delta = assembler.feed([c], logprobs([c]))
    assert (delta.text, [entry.token for entry in delta.entries]) == ("abc", [a, b, c])


def test_offsets_count_characters_from_the_start_of_the_text(byte_level: Tokenizer) -> None:
    tokens = byte_level.encode("hello woΩ")
    entries = run(byte_level, tokens, TextOptions())[1]
    assert [entry.offset for entry in entries] == [0, 5, 8, 8]


def test_the_prompts_entries_line_up_with_its_text(sentencepiece: Tokenizer) -> None:
    tokens = sentencepiece.encode("hello world")
    text, entries = prompt_entries(sentencepiece, tokens, logprobs(tokens[1:]))
    assert text == "hello world"
    assert [entry.token for entry in entries] == tokens
    assert entries[0].logprob is None
    assert [text[entry.offset :][:1] for entry in entries[1:3]] == ["h", " "]
