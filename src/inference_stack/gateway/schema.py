"""What clients may send: the request bodies as typed structs, which are validation and OpenAPI schema at once.

Field names and ranges are OpenAI's, then the extensions that other servers made customary. What this server cannot do is
not in the structs, or only with the values that ask for nothing; `decode` finds the words for a refusal.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Text = Annotated[str, Meta(pattern="^[^\\x00]*$")]
"""Text without null characters."""

Name = Annotated[str, Meta(min_length=1, max_length=256, pattern="^[^\\x00-\\x1f\\x7f]*$")]
Short = Annotated[str, Meta(max_length=512)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
StopText = Annotated[str, Meta(min_length=1, max_length=1024, pattern="^[^\\x00]*$")]
Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Nothing = Annotated[list[Any], Meta(max_length=0)]
Alternatives = Annotated[int, Meta(ge=0, le=20)]
PriorityClass = Literal["realtime", "standard", "batch"]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A strict JSON object."""


class StreamOptions(Body):
    """How a stream is told."""

    include_usage: bool | None = None


class Generating(Body):
    """What chat and text completions share."""

    model: Name
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=16)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Meta(pattern="^[0-9]{1,10}$")], Annotated[float, Meta(ge=-100, le=100)]],
            Meta(max_length=1024),
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Short | None = None
    safety_identifier: Short | None = None
    prompt_cache_key: Short | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "default"] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=256)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: Alternatives | None = None
    return_token_ids: bool | None = None
    priority: Annotated[int, Meta(ge=-100, le=100)] | PriorityClass | None = None


class TextPart(Body, kw_only=True):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text


Content = Text | Annotated[list[TextPart], Meta(min_length=1)]


class SystemMessage(Body, tag_field="role", tag="system"):
    """Instructions to the model."""

    content: Content
    name: Name | None = None


class DeveloperMessage(Body, tag_field="role", tag="developer"):
    """Instructions to the model, under OpenAI's newer name."""

    content: Content
    name: Name | None = None


class UserMessage(Body, tag_field="role", tag="user"):
    """What the user said."""

    content: Content
    name: Name | None = None


class AssistantMessage(Body, tag_field="role", tag="assistant"):
    """What the model said before. Clients send back whole answers, so the fields of an answer are accepted when empty."""

    content: Content
    name: Name | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing | None = None
    annotations: Nothing | None = None


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage


class TextFormat(Body, kw_only=True):
    """Free text."""

    type: Literal["text"]


class ChatRequest(Generating, kw_only=True):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Meta(max_length=64)] | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Meta(max_length=1)] | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none"] | None = None
    parallel_tool_calls: bool | None = None
    functions: Nothing | None = None
    function_call: Literal["none"] | None = None
    store: bool | None = None


class CompletionRequest(Generating, kw_only=True):
    """POST /v1/completions"""

    prompt: Text | Annotated[list[Text | TokenId | Annotated[list[TokenId], Meta(min_length=1)]], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    echo: bool | None = None
    logprobs: Alternatives | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None
    suffix: Annotated[str, Meta(max_length=0)] | None = None
    return_tokens_as_token_ids: bool | None = None


class TokenizeRequest(Body, kw_only=True):
    """POST /tokenize: either `prompt` or `messages`."""

    model: Name | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: Annotated[dict[str, Any], Meta(max_length=64)] | None = None
    return_token_strs: bool = False


class DetokenizeRequest(Body, kw_only=True):
    """POST /detokenize"""

    model: Name | None = None
    tokens: Annotated[list[TokenId], Meta(max_length=4_000_000)]
