"""Bodies are read whole, bounded in size and in time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.datastructures import Headers

from inference_stack.core.errors import InferenceError
from inference_stack.gateway.body import read_json_body

JSON = Headers({"content-type": "application/json"})


def parts(*chunks: bytes, whole: bool = True) -> Any:
    """What a client sent; one that sent less than all stays silent."""
    waiting = list(chunks)

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting) or not whole}

    return receive


async def test_a_body_in_parts_is_read_whole() -> None:
    assert await read_json_body(JSON, parts(b"{", b"}"), 10) == b"{}"


async def test_a_body_beyond_the_limit_is_not_read_on() -> None:
    with pytest.raises(InferenceError) as refusal:
        await read_json_body(JSON, parts(b"x" * 8, b"x" * 8, whole=False), 10)
    assert refusal.value.info.status == 413


async def test_a_body_that_never_ends_is_given_up() -> None:
    with pytest.raises(InferenceError) as refusal:
        await read_json_body(JSON, parts(b"{", whole=False), 10, seconds=0.01)
    assert refusal.value.info.status == 408
