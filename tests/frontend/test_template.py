"""Templates render as Hugging Face renders them, inside bounds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from inference_stack.core.errors import InferenceError
from inference_stack.frontend import template as template_module
from inference_stack.frontend.chat import ChatEncoder, ChatOptions
from inference_stack.frontend.template import ChatTemplate
from inference_stack.frontend.tokenizer import Tokenizer
from tests.frontend.vocabularies import CHATML

INSTRUCT = """{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate: user, assistant, user, …') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + (system + '\\n\\n' if loop.first and system else '') + message.content | trim + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message.content | trim + eos_token }}
    {%- endif %}
{%- endfor %}"""

TOOLS = """{%- set ns = namespace(last=-1, open=true) %}
{%- for message in messages[::-1] %}
    {%- if ns.open and message.role == 'user' %}
        {%- set ns.open = false %}
        {%- set ns.last = messages | length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- macro describe(tool) %}
- {{ tool.function.name }}: {{ tool | tojson(indent=2) }}
{% endmacro %}
{%- if tools %}
    {% for tool in tools %}
        {{- describe(tool) }}
    {% endfor %}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' and loop.previtem is defined and loop.previtem.role != 'tool' %}<results>{% endif %}
{%- if message.tool_calls %}
    {%- for call in message.tool_calls %}
        {%- if not loop.first %}{% continue %}{% endif %}
<call>{{ {"name": call.function.name, "arguments": call.function.arguments} | tojson }}</call>
    {%- endfor %}
{%- else %}
    {{- '<' ~ message.role ~ '>' ~ (message.content if message.content is string else message.content | tojson) }}
    {%- if loop.index0 == ns.last %}!{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}
"""

PARTS = """{% for message in messages %}
    <{{ message['role'] }}>{% for part in message['content'] %}
        {%- if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}
    {%- endfor %}
{% generation %}</{{ message['role'] }}>{% endgeneration %}

{% endfor %}"""

DATED = "Today: {{ strftime_now('%d %B %Y') }}{% for m in messages %}|{{ m.content }}{% endfor %}"

TALK: list[dict[str, Any]] = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Hi  <b>'you' & \"me\"</b> é 你好"},
    {"role": "assistant", "content": " Hello!\n"},
    {"role": "user", "content": "x\n\n"},
]
CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "1",
                "type": "function",
                "function": {"name": "get", "arguments": {"città": "Tōkyō <&>", "n": [1, None]}},
            }
        ],
    },
    {"role": "tool", "content": "22°", "tool_call_id": "1"},
]
TOOL = {"type": "function", "function": {"name": "get", "description": "Il “meteo”", "parameters": {"type": "object"}}}
IN_PARTS = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in TALK]
NAMES = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


def theirs(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    rendered, _ = chat_template_utils.render_jinja_template([messages], chat_template=template, **NAMES, **options)
    return str(rendered[0])


def ours(tokenizer: Tokenizer, template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    return ChatEncoder(tokenizer, {"default": template}).render(messages, ChatOptions(**options), now=0.0)


@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.parametrize(
    ("template", "messages", "tools"),
    [
        (CHATML, TALK, None),
        (INSTRUCT, TALK, None),
        (TOOLS, TALK, [TOOL]),
        (TOOLS, CALLS, [TOOL, TOOL]),
        (PARTS, IN_PARTS, None),
    ],
)
def test_templates_render_as_hugging_faces(
    byte_level: Tokenizer,
    template: str,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    generate: bool,
) -> None:
    expected = theirs(template, messages, tools=tools, add_generation_prompt=generate)
    assert ours(byte_level, template, messages, tools=tools, add_generation_prompt=generate) == expected


@pytest.mark.parametrize("content", ["Once upon", "Once upon a ", " Once\n", "", "<|im_end|>", "a <"])
@pytest.mark.parametrize("template", [CHATML, INSTRUCT, TOOLS])
def test_the_last_message_is_left_open_as_hugging_faces_does(
    byte_level: Tokenizer, template: str, content: str
) -> None:
    messages = [{"role": "user", "content": "Tell."}, {"role": "assistant", "content": content}]
    expected = theirs(template, messages, continue_final_message=True)
    assert ours(byte_level, template, messages, continue_final_message=True, add_generation_prompt=False) == expected


def test_the_last_part_is_left_open(byte_level: Tokenizer) -> None:
    expected = theirs(PARTS, IN_PARTS, continue_final_message=True)
    assert ours(byte_level, PARTS, IN_PARTS, continue_final_message=True, add_generation_prompt=False) == expected


def test_a_template_that_drops_the_last_message_cannot_continue_it(byte_level: Tokenizer) -> None:
    with pytest.raises(InferenceError, match="continue_final_message"):
        ours(byte_level, "{{ messages[0].role }}", TALK, continue_final_message=True, add_generation_prompt=False)


def test_opening_and_continuing_exclude_each_other(byte_level: Tokenizer) -> None:
    with pytest.raises(InferenceError, match="exclude"):
        ours(byte_level, CHATML, TALK, continue_final_message=True)


def test_the_time_is_the_one_that_was_passed_in(byte_level: Tokenizer) -> None:
    chat = ChatEncoder(byte_level, {"default": DATED})
    moment = datetime(2031, 5, 4, tzinfo=UTC).timestamp()
    text = chat.render([{"role": "user", "content": "x"}], ChatOptions(), now=moment)
    assert text == "Today: 04 May 2031|x"


def test_variables_reach_the_template(byte_level: Tokenizer) -> None:
    template = "{% if enable_thinking is defined and not enable_thinking %}off{% endif %}{{ messages[0].content }}"
    assert ours(byte_level, template, TALK[1:2], template_kwargs={"enable_thinking": False}).startswith("off")


def test_variables_may_not_replace_the_conversation(byte_level: Tokenizer) -> None:
    with pytest.raises(InferenceError, match="chat_template_kwargs may not set messages"):
        ours(byte_level, CHATML, TALK, template_kwargs={"messages": []})


def test_a_template_for_tools_is_used_where_there_are_tools(byte_level: Tokenizer) -> None:
    chat = ChatEncoder(byte_level, {"default": "plain", "tool_use": "tools"})
    assert chat.render(TALK, ChatOptions(), now=0.0) == "plain"
    assert chat.render(TALK, ChatOptions(tools=[TOOL]), now=0.0) == "tools"


def test_a_template_may_refuse_with_its_own_words(byte_level: Tokenizer) -> None:
    with pytest.raises(InferenceError, match="Roles must alternate") as refused:
        ours(byte_level, INSTRUCT, [TALK[1], TALK[3]])
    assert (refused.value.info.status, refused.value.info.code) == (400, "chat_template_error")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ undefined_thing.attribute }}",
        "{{ messages | first | int(1/0) }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ range(1000000) | list }}",
        "{{ 'x' % () % 1 }}",
    ],
)
def test_whatever_fails_in_a_template_is_a_client_error(source: str) -> None:
    with pytest.raises(InferenceError) as refused:
        ChatTemplate(source).render({"messages": [{"role": "user", "content": "x"}]}, now=0.0)
    assert refused.value.info.status == 400


def test_loops_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "MAX_TURNS", 1000)
    template = ChatTemplate("{% for a in range(100) %}{% for b in 'x' * 100 %}{% endfor %}{% endfor %}")
    with pytest.raises(InferenceError, match="loop turns"):
        template.render({}, now=0.0)


def test_lazy_loops_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "MAX_TURNS", 1000)
    template = ChatTemplate(
        "{% for a in range(100) %}{% for b in range(100) | map('string') %}{% endfor %}{% endfor %}"
    )
    with pytest.raises(InferenceError, match="loop turns"):
        template.render({}, now=0.0)


def test_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "MAX_OUTPUT", 1000)
    with pytest.raises(InferenceError, match="characters"):
        ChatTemplate("{% for a in range(100) %}0123456789abc{% endfor %}").render({}, now=0.0)


def test_a_source_that_is_no_template_is_refused() -> None:
    with pytest.raises(InferenceError, match="line 2") as refused:
        ChatTemplate("ok\n{% for %}")
    assert refused.value.info.code == "unsupported_model"


def test_a_model_without_a_template_says_so(byte_level: Tokenizer) -> None:
    with pytest.raises(InferenceError, match="no chat template") as refused:
        ChatEncoder(byte_level, {}).encode(TALK, ChatOptions(), now=0.0)
    assert (refused.value.info.status, refused.value.info.code) == (400, "no_chat_template")
