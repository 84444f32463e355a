"""OpenAI's message forms, brought to what a template reads."""

from __future__ import annotations

from typing import Any

import pytest

from inference_stack.core.errors import InferenceError
from inference_stack.frontend.messages import Shape, normalise, template_shape
from inference_stack.frontend.template import ChatTemplate
from tests.frontend.vocabularies import CHATML

PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
BOTH = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}{% endfor %}"
CALLING = (
    "{%% for m in messages %%}{{ m.content }}{%% for c in m.tool_calls or [] %%}{{ %s }}{%% endfor %%}{%% endfor %%}"
)
DUMPS = CALLING % "c.function.arguments | tojson"
JOINS = CALLING % "'' + c.function.arguments"


def only(message: dict[str, Any], source: str = CHATML) -> dict[str, Any]:
    template = ChatTemplate(source)
    return normalise([message], template_shape(template), template)[0]


@pytest.mark.parametrize(
    ("source", "strings", "parts"), [(CHATML, True, False), (PARTS, False, True), (BOTH, True, True)]
)
def test_what_a_template_reads_is_found_out(source: str, strings: bool, parts: bool) -> None:
    shape = template_shape(ChatTemplate(source))
    assert (shape.strings, shape.parts) == (strings, parts)


def test_text_parts_become_a_string_where_the_template_reads_strings() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert only({"role": "user", "content": parts})["content"] == "a\nb"


def test_a_string_becomes_a_part_where_the_template_reads_parts() -> None:
    assert only({"role": "user", "content": "a"}, PARTS)["content"] == [{"type": "text", "text": "a"}]


def test_a_refusal_is_text() -> None:
    assert only({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]})["content"] == "no"


@pytest.mark.parametrize("source", [DUMPS, JOINS])
def test_tool_arguments_come_as_the_template_reads_them(source: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    message = only({"role": "assistant", "content": None, "tool_calls": [call]}, source)
    assert message["tool_calls"][0]["function"]["arguments"] == ({"a": 1} if source == DUMPS else '{"a": 1}')


def test_arguments_that_are_no_json_stay_text() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "oops"}}
    message = only({"role": "assistant", "content": None, "tool_calls": [call]}, DUMPS)
    assert message["tool_calls"][0]["function"]["arguments"] == "oops"


def test_absent_content_is_empty_unless_the_template_knows_none() -> None:
    assert only({"role": "assistant", "content": None})["content"] == ""
    assert (
        only({"role": "assistant", "content": None}, "{% if messages[0].content is none %}{% endif %}")["content"]
        is None
    )


def test_reasoning_is_known_by_its_usual_name_too() -> None:
    assert only({"role": "assistant", "content": "", "reasoning": "r"})["reasoning_content"] == "r"


def test_messages_are_not_changed() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    only(message)
    assert message == {"role": "user", "content": [{"type": "text", "text": "a"}]}


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "image_url"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "text must be a string"),
        ({"role": "user", "content": ["x"]}, r"messages\[0\].content\[0\]"),
        ({"role": "user", "content": 5}, "must be a string or a list"),
        ({"role": "wizard", "content": "x"}, "wizard"),
        ({"content": "x"}, "None"),
        ({"role": "assistant", "content": "", "tool_calls": ["x"]}, "tool_calls"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(message: dict[str, Any], named: str) -> None:
    with pytest.raises(InferenceError, match=named) as refused:
        only(message)
    assert refused.value.info.status == 400


def test_no_messages_are_refused() -> None:
    with pytest.raises(InferenceError, match="at least one"):
        normalise([], Shape(), ChatTemplate(CHATML))


def test_a_role_that_the_template_names_is_its_role() -> None:
    source = CHATML + "{% if messages[0].role == 'observation' %}{% endif %}"
    assert only({"role": "observation", "content": "x"}, source)["role"] == "observation"
