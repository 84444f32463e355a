"""One client for every HTTP server: a batch of streamed completions sent together, each arrival of text timed.

Raw sockets and one JSON parse per event, because it shares its cores with the server it measures.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

from bench.peers.scenarios import Ask, Reply

from inference_stack.cli.bench.http import Response, request
from inference_stack.cli.sse import EventParser

TIMEOUT_S = 900.0


def body(model: str, ask: Ask, extra: Mapping[str, Any]) -> dict[str, Any]:
    """A streamed greedy completion that does not stop early."""
    return {
        "model": model,
        "prompt": ask.text,
        "max_tokens": ask.max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **extra,
    }


def take(event: Mapping[str, Any], reply: Reply, now: float) -> None:
    """Add one event of a stream to the reply. Raises `RuntimeError` if it is an error."""
    if "error" in event:
        raise RuntimeError(f"the stream ended with {event['error']}")
    if any(choice.get("text") for choice in event.get("choices") or ()):
        reply.events.append(now)
    if usage := event.get("usage"):
        reply.prompt_tokens, reply.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]


async def _read(response: Response, begin: float) -> Reply:
    reply, parser = Reply(), EventParser()
    async for chunk in response.chunks():
        now = perf_counter() - begin
        for data in parser.feed(chunk):
            if data != b"[DONE]":
                take(json.loads(data), reply, now)
    return reply


async def _complete(url: str, payload: dict[str, Any], begin: float) -> Reply:
    async with request("POST", url, "/v1/completions", payload) as response:
        if response.status != 200:
            raise RuntimeError(f"{url} answered {response.status}: {(await response.body())[:500]!r}")
        return await _read(response, begin)


async def _batch(url: str, payloads: Sequence[dict[str, Any]]) -> list[Reply]:
    begin = perf_counter()
    async with asyncio.timeout(TIMEOUT_S):
        return list(await asyncio.gather(*(_complete(url, payload, begin) for payload in payloads)))


def send(url: str, model: str, asked: Sequence[Ask], extra: Mapping[str, Any]) -> list[Reply]:
    """The replies to requests sent all at once. Raises `RuntimeError`, `OSError` or `TimeoutError` if any fails."""
    return asyncio.run(_batch(url, [body(model, ask, extra) for ask in asked]))
