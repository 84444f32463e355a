"""What clients get: the response objects of OpenAI's API as typed structs, and of the small endpoints beside it.

The hot path writes its chunks by hand (`streaming`); these structs are their specification, and tests compare the two.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

ShownFinish = Literal["stop", "length"]


class PromptDetails(Struct):
    """What the prompt's tokens were; `cached_tokens` needed no computation."""

    cached_tokens: int = 0


class CompletionDetails(Struct):
    """What the completion's tokens were."""

    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(Struct):
    """Tokens of the served model. A prompt shared by n choices counts once; a completion ends with the token that ended it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TopLogprob(Struct):
    """An alternative at one position."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(Struct):
    """A token of the completion, its natural-log probability, and the likeliest alternatives."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    """One entry per counted token."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class RankedLogprob(Struct):
    """A prompt token's log probability under the model, by token id; `rank` counts from 1."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, RankedLogprob] | None]
"""One entry per prompt token; the first is null."""


class AnswerMessage(Struct, kw_only=True):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Struct):
    """One completion."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: ShownFinish
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, kw_only=True):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Delta(Struct):
    """What is new in a choice."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: UnsetType | None = UNSET


class ChunkChoice(Struct):
    """One choice's news."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: ShownFinish | None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(Struct, kw_only=True):
    """One event of a chat stream. `usage` is there when asked for, null in all chunks but the last."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class TextLogprobs(Struct):
    """Columns over the tokens of the text; offsets are in characters of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Struct):
    """One completion."""

    text: str
    index: int
    logprobs: TextLogprobs | None
    finish_reason: ShownFinish | None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class TextCompletion(Struct, kw_only=True):
    """The answer of /v1/completions, and one event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET


class ModelCard(Struct, kw_only=True):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    max_model_len: int


class ModelList(Struct, kw_only=True):
    """The served models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Tokenized(Struct, kw_only=True):
    """Token ids of a text or a conversation."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(Struct):
    """The text of token ids."""

    prompt: str


class WorkerHealth(Struct, kw_only=True):
    """A worker process of a node."""

    node: str
    pid: int
    device: str
    state: str
    restarts: int
    reason: str = ""


class Health(Struct, kw_only=True):
    """The process, and what it knows of its workers. `errors` say why a node cannot go on."""

    status: Literal["ok", "degraded", "draining"]
    version: str
    models: list[str]
    workers: list[WorkerHealth]
    errors: list[str]


class Probe(Struct):
    """A yes."""

    status: Literal["ok"] = "ok"


class Version(Struct):
    """What is running."""

    version: str


def usage_of(prompt: int, completion: int, cached: int) -> Usage:
    """Usage from three counts of tokens."""
    return Usage(prompt, completion, prompt + completion, PromptDetails(cached), CompletionDetails())


def encode(reply: object) -> bytes:
    """JSON of a reply."""
    return msgspec.json.encode(reply)
