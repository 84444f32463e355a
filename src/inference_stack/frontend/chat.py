"""A conversation to token ids: choose the template, normalise, guard against control tokens, render, encode.

`ChatEncoder` is made once per model and used from many threads. It knows the tokenizer and the templates; nothing of HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inference_stack.core.errors import ErrorInfo, InferenceError, invalid
from inference_stack.frontend.control import GuardedEncoder, Literals, free_character
from inference_stack.frontend.messages import Message, Shape, normalise, template_shape
from inference_stack.frontend.template import RESERVED, ChatTemplate, template_error
from inference_stack.frontend.tokenizer import Tokenizer

_SPELL = json.JSONEncoder(ensure_ascii=False).encode
_UNMARKED = frozenset({"role", "type"})
"""Keys whose values templates compare: whole control tokens are marked in them, parts of one are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How to render. `template_kwargs` are extra variables for the template (`chat_template_kwargs` of the request).

    With `continue_final_message` the last message is left open, so that the model goes on writing it.
    """

    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


class ChatEncoder:
    """Renders and encodes conversations for one model. `templates` maps names to sources; `default` is the usual one.

    Raises `unsupported_model` where a template is not valid.
    """

    def __init__(self, tokenizer: Tokenizer, templates: Mapping[str, str]) -> None:
        self._tokenizer = tokenizer
        self._entries = {name: _Entry(tokenizer, source) for name, source in templates.items()}

    @property
    def available(self) -> bool:
        """Whether the model has a chat template at all."""
        return bool(self._entries)

    def encode(self, messages: Sequence[Message], options: ChatOptions, *, now: float) -> list[int]:
        """The prompt's ids. `now` (seconds since the epoch) is the time that the template may show.

        Control tokens come from the template alone: in messages, tools and template variables their literals are text.
        Raises 400 errors: no template, a message that cannot be served, a template that refuses.
        """
        entry, text, mark = self._rendered(messages, options, now)
        if mark in text:
            return entry.encoder.encode(text, mark)
        return self._tokenizer.encode(text, add_special_tokens=False)

    def render(self, messages: Sequence[Message], options: ChatOptions, *, now: float) -> str:
        """The prompt's text. To be shown, not to be encoded: it no longer tells the template's tokens from the messages' text."""
        _, text, mark = self._rendered(messages, options, now)
        return text.replace(mark, "")

    def _rendered(self, messages: Sequence[Message], options: ChatOptions, now: float) -> tuple[_Entry, str, str]:
        entry = self._entry(options)
        _check(options)
        try:
            values = _values(normalise(messages, entry.shape, entry.template), options)
            spelt = _SPELL(values)
            mark = free_character(spelt + entry.template.source)
            guarded = entry.guarded(values, mark)
        except RecursionError as error:
            raise template_error("the messages are nested too deeply") from error
        if options.continue_final_message:
            text = _render_open(entry.template, guarded, free_character(spelt + mark), now)
        else:
            text = entry.template.render(guarded, now=now)
        escaped = json.dumps(mark)[1:-1]
        return entry, text if escaped in spelt else text.replace(escaped, mark), mark

    def _entry(self, options: ChatOptions) -> _Entry:
        """The template for these options: `tool_use` where there are tools and such a template, else the default."""
        names = ["tool_use", "default"] if options.tools else ["default"]
        for name in names:
            if name in self._entries:
                return self._entries[name]
        raise InferenceError(
            ErrorInfo(
                message="This model has no chat template, so it cannot serve chat. Use /v1/completions with a complete prompt.",
                code="no_chat_template",
                param="messages",
            )
        )


class _Entry:
    """A template, what it reads, and which tokens are control tokens beside it."""

    def __init__(self, tokenizer: Tokenizer, source: str) -> None:
        self.template = ChatTemplate(source, tokenizer.named)
        self.shape: Shape = template_shape(self.template)
        literals = self.template.literals
        written = {
            token for token, added in tokenizer.added.items() if added.content.strip() and added.content in literals
        }
        self.encoder = GuardedEncoder(tokenizer, tokenizer.special_ids | written)
        self._special = Literals(tokenizer.added[token].content for token in tokenizer.special_ids)
        self._controls = Literals(tokenizer.added[token].content for token in tokenizer.special_ids | written)

    def guarded(self, values: dict[str, Any], mark: str) -> dict[str, Any]:
        """The values with marks. What the assistant said may hold ordinary added tokens (`<think>`), as it once wrote them."""
        return {
            key: [self._message(message, mark) for message in value]
            if key == "messages"
            else _mark(value, self._controls, mark)
            for key, value in values.items()
        }

    def _message(self, message: dict[str, Any], mark: str) -> Any:
        return _mark(message, self._special if message["role"] == "assistant" else self._controls, mark)


def _mark(value: Any, literals: Literals, mark: str) -> Any:
    """`value` (plain JSON) with every string in it guarded."""
    if isinstance(value, str):
        return literals.guard(value, mark)
    if isinstance(value, Mapping):
        return {
            literals.inside(str(key), mark): literals.inside(item, mark)
            if key in _UNMARKED and isinstance(item, str)
            else _mark(item, literals, mark)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_mark(item, literals, mark) for item in value]
    return value


def _check(options: ChatOptions) -> None:
    if options.add_generation_prompt and options.continue_final_message:
        raise invalid(
            "add_generation_prompt and continue_final_message exclude each other: one opens a new message, the other goes on "
            "with the last.",
            param="continue_final_message",
        )
    taken = sorted(RESERVED.intersection(options.template_kwargs))
    if taken:
        raise invalid(f"chat_template_kwargs may not set {', '.join(taken)}.", param="chat_template_kwargs")


def _values(messages: list[dict[str, Any]], options: ChatOptions) -> dict[str, Any]:
    return {
        **options.template_kwargs,
        "messages": messages,
        "tools": list(options.tools) if options.tools else None,
        "documents": list(options.documents) if options.documents else None,
        "add_generation_prompt": options.add_generation_prompt,
    }


def _render_open(template: ChatTemplate, values: dict[str, Any], flag: str, now: float) -> str:
    """Render up to the end of the last message's text: a flag is put behind that text, and all from it on is cut.

    A template that trims takes the space behind the flag away; then the space before it must go as well.
    """
    _append(values["messages"][-1], f"{flag} ")
    text = template.render(values, now=now)
    cut = text.rfind(flag)
    if cut < 0:
        raise template_error("continue_final_message is set, but the template does not write the last message's text")
    return text[:cut] if text[cut + 1 : cut + 2] == " " else text[:cut].rstrip()


def _append(message: dict[str, Any], tail: str) -> None:
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + tail
    elif isinstance(content, list) and content:
        content[-1]["text"] += tail
    else:
        raise invalid("continue_final_message is set, but the last message has no text to continue.", param="messages")
