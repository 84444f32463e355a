"""Control tokens in messages are text; the template's own are tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_stack.core.errors import InferenceError
from inference_stack.frontend.chat import ChatEncoder, ChatOptions
from inference_stack.frontend.control import GuardedEncoder, Literals, free_character
from inference_stack.frontend.load import Frontend
from inference_stack.frontend.tokenizer import Tokenizer
from tests.frontend.vocabularies import CHATML

MARK = "\ue000"
LITERALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
fragments = st.sampled_from(
    [*LITERALS, "<|im_", "end|>", "<", "|>", "hello", " ", "\n", "é", MARK, "<|<|im_end|>", "🦙"]
)
planted = st.lists(fragments, max_size=8).map("".join)


def controls(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    return [token for token in ids if token in tokenizer.special_ids]


@given(contents=st.lists(planted, min_size=1, max_size=4))
def test_ids_hold_exactly_the_templates_control_tokens(byte_level: Tokenizer, contents: list[str]) -> None:
    chat = ChatEncoder(byte_level, {"default": CHATML})
    messages = [{"role": "user", "content": content} for content in contents]
    ids = chat.encode(messages, ChatOptions(), now=0.0)
    start, end = byte_level.token_id("<|im_start|>"), byte_level.token_id("<|im_end|>")
    assert controls(byte_level, ids) == [start, end] * len(contents) + [start]
    spelt = "".join(f"<|im_start|>user\n{content}<|im_end|>\n" for content in contents) + "<|im_start|>assistant\n"
    assert byte_level.decode(ids, skip_special_tokens=False) == spelt


@given(
    halves=st.lists(
        st.sampled_from(["<|im_", "end|>", " <|im_ ", " end|>", "<", "|im_end|>", "<|im_end|", ">", "im"]), max_size=6
    )
)
def test_halves_that_a_template_joins_do_not_make_a_token(byte_level: Tokenizer, halves: list[str]) -> None:
    chat = ChatEncoder(byte_level, {"default": "{% for m in messages %}{{ m.content | trim }}{% endfor %}"})
    ids = chat.encode([{"role": "user", "content": half} for half in ["x", *halves]], ChatOptions(), now=0.0)
    assert controls(byte_level, ids) == []
    assert byte_level.decode(ids, skip_special_tokens=False) == "x" + "".join(half.strip() for half in halves)


@given(text=st.lists(st.sampled_from(["<|end|>", "<|mid|>", " ", "\n", "a", "bc", "é"]), max_size=12).map("".join))
def test_unmarked_text_is_encoded_as_ever(greedy_space: Tokenizer, text: str) -> None:
    guarded = GuardedEncoder(greedy_space, greedy_space.special_ids)
    assert guarded.encode(text, MARK) == greedy_space.encode(text)


@given(text=st.lists(st.sampled_from(["<s>", "</s>", " ", "hello", "w", "or", "é"]), max_size=12).map("".join))
def test_pieces_after_a_control_token_are_encoded_as_ever(sentencepiece: Tokenizer, text: str) -> None:
    guarded = GuardedEncoder(sentencepiece, sentencepiece.special_ids)
    assert guarded.encode(text, MARK) == sentencepiece.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    "options",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "description": "<|im_end|>"}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"<|im_end|>": 1}}}]},
        {"documents": [{"title": "t", "text": "<|im_end|>"}]},
        {"template_kwargs": {"extra": "<|im_end|>"}},
    ],
)
def test_tools_documents_and_variables_are_guarded_too(byte_level: Tokenizer, options: dict[str, Any]) -> None:
    chat = ChatEncoder(byte_level, {"default": "{{ tools | tojson }}{{ documents | tojson }}{{ extra }}"})
    ids = chat.encode([{"role": "user", "content": "x"}], ChatOptions(**options), now=0.0)
    assert controls(byte_level, ids) == []
    assert "<|im_end|>" in byte_level.decode(ids)


def test_escaped_marks_are_still_marks(byte_level: Tokenizer) -> None:
    chat = ChatEncoder(byte_level, {"default": "{{ messages[0].content | tojson(ensure_ascii=true) }}"})
    ids = chat.encode([{"role": "user", "content": "<|im_end|>"}], ChatOptions(), now=0.0)
    assert controls(byte_level, ids) == []
    assert byte_level.decode(ids) == '"<|im_end|>"'


def test_tokens_that_the_template_writes_are_control_tokens_in_user_text_only(byte_level: Tokenizer) -> None:
    think = byte_level.token_id("<think>")
    chat = ChatEncoder(byte_level, {"default": "{% for m in messages %}{{ m.content }}{% endfor %}<think>"})
    spoken = chat.encode([{"role": "user", "content": "<think>"}], ChatOptions(), now=0.0)
    written = chat.encode([{"role": "assistant", "content": "<think>"}], ChatOptions(), now=0.0)
    assert (spoken.count(think), written.count(think)) == (1, 2)


def test_a_role_cannot_spell_a_control_token(byte_level: Tokenizer) -> None:
    chat = ChatEncoder(byte_level, {"default": "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% endfor %}"})
    with pytest.raises(InferenceError, match="im_end"):
        chat.encode([{"role": "im_end", "content": ""}], ChatOptions(), now=0.0)


def test_the_longest_literal_is_found() -> None:
    literals = Literals(["<a>", "<a>b", "<ab"])
    assert literals.pattern.findall("<a>bb<ab><a>") == ["<a>b", "<ab", "<a>"]


def test_no_literals_match_nothing() -> None:
    assert Literals([]).guard("<|im_end|>", MARK) == "<|im_end|>"


def test_the_mark_is_a_character_that_does_not_occur() -> None:
    assert free_character("\ue000\ue001") == "\ue002"


@pytest.mark.model
@given(contents=st.lists(planted, min_size=1, max_size=3))
def test_the_demo_models_conversations_hold_only_its_own_control_tokens(smollm2: Frontend, contents: list[str]) -> None:
    messages = [{"role": "system", "content": ""}, *({"role": "user", "content": content} for content in contents)]
    ids = smollm2.chat.encode(messages, ChatOptions(), now=0.0)
    assert controls(smollm2.tokenizer, ids) == [1, 2] * len(messages) + [1]
    assert smollm2.tokenizer.decode(ids, skip_special_tokens=False) == smollm2.chat.render(
        messages, ChatOptions(), now=0.0
    )
