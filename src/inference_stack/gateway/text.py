"""Text to tokens and back for the handlers, off the event loop where it would hold the loop up.

The frontend does the work; here is only decided where it is done, and what a request's fields mean to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec

from inference_stack.frontend.chat import ChatOptions
from inference_stack.frontend.load import Frontend
from inference_stack.gateway.schema import ChatRequest, Message, TokenizeRequest

T = TypeVar("T")

BIG: Final = 4096
"""Characters (or tokens) from which encoding and decoding leave the event loop; below it costs less than a thread's wake-up."""


async def _off_loop(size: int, work: Callable[[], T]) -> T:
    return work() if size < BIG else await asyncio.to_thread(work)


async def encoded(frontend: Frontend, text: str, add_special_tokens: bool = True) -> tuple[int, ...]:
    """Token ids of a prompt. Raises `InferenceError` (400)."""
    return tuple(
        await _off_loop(len(text), lambda: frontend.tokenizer.encode(text, add_special_tokens=add_special_tokens))
    )


async def decoded(frontend: Frontend, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
    """The text of token ids."""
    return await _off_loop(
        len(tokens), lambda: frontend.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)
    )


async def spelled(frontend: Frontend, tokens: Sequence[int]) -> list[str]:
    """Each token's own text."""
    return await _off_loop(len(tokens), lambda: [frontend.tokenizer.token_text(token) for token in tokens])


async def conversation(
    frontend: Frontend, messages: Sequence[Message], options: ChatOptions, now: float
) -> tuple[int, ...]:
    """Token ids of a conversation, as the model's template writes it at Unix time `now`. Raises `InferenceError` (400)."""
    plain = [_plain(message) for message in messages]
    size = sum(_size(message) for message in messages) + len(str(options.template_kwargs))
    return tuple(await _off_loop(size, lambda: frontend.chat.encode(plain, options, now=now)))


def chat_options(body: ChatRequest | TokenizeRequest) -> ChatOptions:
    """How to write the conversation; without a word on it, a new message is opened unless the last is to be continued."""
    continued = bool(body.continue_final_message)
    generation = body.add_generation_prompt
    return ChatOptions(
        add_generation_prompt=not continued if generation is None else generation,
        continue_final_message=continued,
        template_kwargs=body.chat_template_kwargs or {},
    )


def _plain(message: Message) -> dict[str, object]:
    """A message as templates want it. Templates know `developer` only under its older name."""
    plain = {name: value for name, value in msgspec.to_builtins(message).items() if value is not None}
    return plain | {"role": "system"} if plain["role"] == "developer" else plain


def _size(message: Message) -> int:
    content = message.content
    return len(content) if isinstance(content, str) else sum(len(part.text) for part in content)
