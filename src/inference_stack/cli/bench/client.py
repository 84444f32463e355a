"""One streamed completion, timed as it arrives. Failures are outcomes, counted by kind, never exceptions."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from inference_stack.cli.bench.http import ProtocolError, Response, request
from inference_stack.cli.bench.spec import Job, Load, Outcome
from inference_stack.cli.sse import EventParser
from inference_stack.core.seams import Clock


def body_of(load: Load, job: Job) -> dict[str, Any]:
    """The request's JSON, of the kind the endpoint takes."""
    prompt = job.prompt
    if load.chat and isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return {
        "model": load.model,
        "messages" if load.chat else "prompt": prompt,
        "max_tokens": job.output_len,
        "temperature": load.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"ignore_eos": True} if load.ignore_eos else {}),
    }


async def complete(load: Load, job: Job, clock: Clock, begin: float | None = None) -> Outcome:
    """Send the job and read its stream. `begin`: when it arrived, if that was before now."""
    outcome = Outcome(begin=clock.now() if begin is None else begin)
    path = "/v1/chat/completions" if load.chat else "/v1/completions"
    try:
        async with (
            asyncio.timeout(load.timeout),
            request("POST", load.target, path, body_of(load, job), load.api_key) as response,
        ):
            outcome.error = await (_stream(response, outcome, clock) if response.status == 200 else _refusal(response))
    except TimeoutError:
        outcome.error = "timeout"
    except ConnectionRefusedError:
        outcome.error = "connection_refused"
    except OSError:
        outcome.error = "connection_lost"
    except (ProtocolError, ValueError):
        outcome.error = "protocol"
    outcome.end = clock.now()
    return outcome


async def _refusal(response: Response) -> str:
    try:
        error = json.loads(await response.body())["error"]
        code = error.get("code") or error.get("type")
    except (ValueError, KeyError, TypeError, AttributeError):
        code = None
    return f"http_{response.status}" + (f":{code}" if code and code != response.status else "")


async def _stream(response: Response, outcome: Outcome, clock: Clock) -> str:
    """Read events until `[DONE]`; the kind of error, empty for none."""
    parser = EventParser()
    async for chunk in response.chunks():
        now = clock.now()
        for data in parser.feed(chunk):
            if data == b"[DONE]":
                return "" if outcome.events else "empty"
            if error := _take(json.loads(data), outcome, now):
                return error
    return "truncated"


def _take(event: dict[str, Any], outcome: Outcome, now: float) -> str:
    if "error" in event:
        error = event["error"]
        return f"stream:{error.get('code') or error.get('type')}" if isinstance(error, dict) else "stream"
    for choice in event.get("choices") or ():
        text = choice.get("text") or (choice.get("delta") or {}).get("content")
        if text:
            outcome.events.append(now)
            outcome.output_tokens += 1
    if usage := event.get("usage"):
        outcome.prompt_tokens = usage.get("prompt_tokens") or 0
        outcome.output_tokens = usage.get("completion_tokens") or outcome.output_tokens
        outcome.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return ""
