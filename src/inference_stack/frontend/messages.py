"""Chat messages as templates want them: OpenAI's forms brought to the form that a template reads.

Content comes as a string or as a list of parts, tool arguments as JSON text; templates differ in which they take, so each one
is tried once, when it is loaded. Only text is served: other parts are refused by name. Knows no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference_stack.core.errors import InferenceError, invalid
from inference_stack.frontend.template import ChatTemplate

Message = Mapping[str, Any]

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_PROBE = "probe-7f3a"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a template reads: content as `strings`, as lists of `parts`, absent content as `none`, tool arguments as objects."""

    strings: bool = True
    parts: bool = False
    none: bool = False
    argument_objects: bool = True


def template_shape(template: ChatTemplate) -> Shape:
    """Find out what `template` reads by rendering probes with it."""
    return Shape(
        strings=_reads(template, {"role": "user", "content": _PROBE}) or not _reads(template, _parts_probe()),
        parts=_reads(template, _parts_probe()),
        none="none" in template.source.lower(),
        argument_objects=_reads_call(template, {_PROBE: _PROBE})
        or not _reads_call(template, json.dumps({_PROBE: _PROBE})),
    )


def normalise(messages: Sequence[Message], shape: Shape, template: ChatTemplate) -> list[dict[str, Any]]:
    """Messages for a template of `shape`, as fresh copies. Raises a 400 error that names the message at fault."""
    if not messages:
        raise invalid("messages must hold at least one message.", param="messages")
    return [_message(message, f"messages[{i}]", shape, template) for i, message in enumerate(messages)]


def _parts_probe() -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": _PROBE}]}


def _reads(template: ChatTemplate, message: dict[str, Any]) -> bool:
    """Whether the template writes the probe, and as text rather than as a data structure."""
    text = _try(template, [message])
    return text is not None and _PROBE in text and "'text'" not in text and '"text"' not in text


def _reads_call(template: ChatTemplate, arguments: object) -> bool:
    call = {"id": "call_000000", "type": "function", "function": {"name": "probe", "arguments": arguments}}
    calling = {"role": "assistant", "content": None if "none" in template.source.lower() else "", "tool_calls": [call]}
    text = _try(template, [{"role": "user", "content": _PROBE}, calling])
    return text is not None and '\\"' not in text


def _try(template: ChatTemplate, messages: list[dict[str, Any]]) -> str | None:
    values = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": False}
    try:
        return template.render(values, now=0.0)
    except InferenceError:
        return None


def _message(message: Message, where: str, shape: Shape, template: ChatTemplate) -> dict[str, Any]:
    fresh = dict(message)
    _check_role(fresh.get("role"), where, template)
    fresh["content"] = _content(fresh.get("content"), f"{where}.content", shape)
    if fresh.get("tool_calls"):
        fresh["tool_calls"] = [_tool_call(call, f"{where}.tool_calls", shape) for call in fresh["tool_calls"]]
    if fresh.get("reasoning_content") is None and isinstance(fresh.get("reasoning"), str):
        fresh["reasoning_content"] = fresh["reasoning"]
    return fresh


def _check_role(role: object, where: str, template: ChatTemplate) -> None:
    """Templates may build control tokens out of roles, so a role must be a usual one, or one that the template itself names."""
    if isinstance(role, str) and (role in ROLES or f"'{role}'" in template.source or f'"{role}"' in template.source):
        return
    raise invalid(
        f"{where}.role is {role!r}, which is no role of this model; expected {', '.join(sorted(ROLES))}.", param=where
    )


def _content(content: object, where: str, shape: Shape) -> object:
    if content is None:
        return None if shape.none else ""
    if isinstance(content, str):
        return content if shape.strings else [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        raise invalid(f"{where} must be a string or a list of parts.", param=where)
    texts = [_part(part, f"{where}[{i}]") for i, part in enumerate(content)]
    return [{"type": "text", "text": text} for text in texts] if shape.parts else "\n".join(texts)


def _part(part: object, where: str) -> str:
    """The text of one part. Everything that is not text is refused: this build serves text models."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    key = {"text": "text", "refusal": "refusal"}.get(str(kind))
    if not isinstance(part, Mapping) or kind is None:
        raise invalid(f"{where} must be an object with a type.", param=where)
    if key is None:
        raise invalid(
            f"{where} has type {kind!r}; this model reads text only.", param=where, code="unsupported_content"
        )
    if not isinstance(part.get(key), str):
        raise invalid(f"{where}.{key} must be a string.", param=where)
    return str(part[key])


def _tool_call(call: object, where: str, shape: Shape) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise invalid(f"{where} must hold objects with a function.", param=where)
    return {**call, "function": {**function, "arguments": _arguments(function.get("arguments"), shape)}}


def _arguments(arguments: object, shape: Shape) -> object:
    """Arguments in the form that the template reads. Text that is no JSON object stays as the model once wrote it."""
    if not shape.argument_objects:
        return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    if not isinstance(arguments, str):
        return arguments
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments
