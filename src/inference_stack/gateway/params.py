"""From a validated body to numbers: sampling parameters, stop strings and seeds, checked against the model.

What depends on the model (vocabulary, context length) is refused here, before anything is queued.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

from inference_stack.core.errors import context_length_exceeded, invalid
from inference_stack.core.fleet import ModelInfo
from inference_stack.core.request import SamplingParams
from inference_stack.frontend.completion import TextOptions
from inference_stack.gateway.schema import ChatRequest, CompletionRequest, Generating

SMALLEST_TOP_P: Final = 1e-6
"""OpenAI allows `top_p` 0 and means: only the most likely token."""


def check_streaming(body: Generating) -> None:
    """Refuse what only a stream, or only a whole answer, can have."""
    if body.stream_options is not None and not body.stream:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise invalid(message, param="stream_options", code="invalid_value")
    if body.prompt_logprobs is not None and body.stream:
        message = "The 'prompt_logprobs' parameter is not available when 'stream' is enabled."
        raise invalid(message, param="prompt_logprobs", code="invalid_value")


def text_options(body: Generating, model: ModelInfo) -> TextOptions:
    """How the completion's tokens become text. Where the stop is to be shown, a stop token is a token like any other."""
    eos = () if body.ignore_eos else model.eos_tokens
    shown = bool(body.include_stop_str_in_output)
    return TextOptions(
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        stop_token_ids=frozenset() if shown else frozenset((*eos, *(body.stop_token_ids or ()))),
        min_tokens=body.min_tokens or 0,
        include_stop_str_in_output=shown,
        skip_special_tokens=body.skip_special_tokens is not False,
    )


def sampling_params(
    body: Generating, model: ModelInfo, max_tokens: int, logprobs: int | None, prompt_logprobs: int | None
) -> SamplingParams:
    """The engine's parameters; null means OpenAI's default. Raises `InferenceError` (400)."""
    if (body.min_tokens or 0) > max_tokens:
        message = (
            f"Invalid 'min_tokens': expected at most max_tokens ({max_tokens}), but got {body.min_tokens} instead."
        )
        raise invalid(message, param="min_tokens", code="invalid_value")
    for position, token in enumerate(body.stop_token_ids or ()):
        _check_token(token, model, f"stop_token_ids[{position}]")
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        temperature=_or(body.temperature, 1.0),
        top_p=max(_or(body.top_p, 1.0), SMALLEST_TOP_P),
        top_k=max(0, body.top_k or 0),
        min_p=_or(body.min_p, 0.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        logit_bias=_logit_bias(body, model),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def _logit_bias(body: Generating, model: ModelInfo) -> dict[int, float]:
    for key in body.logit_bias or ():
        _check_token(int(key), model, "logit_bias")
    return {int(key): float(value) for key, value in (body.logit_bias or {}).items()}


def _check_token(token: int, model: ModelInfo, param: str) -> None:
    if token >= model.vocab_size:
        message = f"Invalid '{param}': token id {token} is not in the model's vocabulary of {model.vocab_size} tokens."
        raise invalid(message, param=param, code="invalid_value")


def check_prompt(tokens: Sequence[int], model: ModelInfo, param: str) -> None:
    """Refuse a prompt of token ids that the model does not have, or of none."""
    if not tokens:
        raise invalid(f"Invalid '{param}': the prompt has no tokens.", param=param, code="empty_prompt")
    if max(tokens) >= model.vocab_size:
        _check_token(max(tokens), model, param)


def chat_budget(body: ChatRequest, model: ModelInfo, prompt: int) -> int:
    """Tokens a chat completion may have: what is asked for, else the rest of the context. Raises when it does not fit."""
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    budget = model.max_model_len - prompt if asked is None else asked
    check_length(model, prompt, max(1, budget), "messages")
    return budget


def completion_budget(body: CompletionRequest) -> int:
    """Tokens a text completion may have; OpenAI's default is 16."""
    return 16 if body.max_tokens is None else body.max_tokens


def check_length(model: ModelInfo, prompt: int, completion: int, param: str) -> None:
    """Refuse what does not fit the model's context."""
    if prompt + completion > model.max_model_len:
        raise context_length_exceeded(model.max_model_len, prompt, completion, param)


def seed_of(body: Generating) -> int:
    """The noise's key: the client's seed as an unsigned 64-bit integer, else a random one."""
    return secrets.randbits(64) if body.seed is None else body.seed % 2**64
