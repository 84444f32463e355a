"""Reading a request's body, never more of it than is allowed, and noticing when the client has gone."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from inference_stack.core.errors import InferenceError
from inference_stack.gateway.decode import wrong_media_type
from inference_stack.gateway.errors import refuse

BODY_SECONDS = 60.0
"""How long a body may take to arrive: a client that sends half of one holds memory and a connection."""


async def read_json_body(headers: Headers, receive: Receive, limit: int, seconds: float = BODY_SECONDS) -> bytes:
    """The whole body, at most `limit` bytes. Raises `InferenceError` (408, 413, 415) and `ClientDisconnect`."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise wrong_media_type(media_type)
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(seconds):
            return await _read(receive, limit)
    except TimeoutError:
        raise refuse(408, "The request body did not arrive in time.", code="body_timeout") from None


async def _read(receive: Receive, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        continue


def _too_large(limit: int) -> InferenceError:
    return refuse(413, f"The request body is larger than the {limit} bytes this server accepts.", code="body_too_large")
