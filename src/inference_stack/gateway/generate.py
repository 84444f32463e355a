"""The two endpoints that generate: body to job, job to answer, streamed or whole.

The order is fixed: everything that can be refused is refused before anything is queued.
"""

from __future__ import annotations

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from inference_stack.gateway.body import read_json_body
from inference_stack.gateway.chat import ChatRenderer, chat_job
from inference_stack.gateway.completions import CompletionRenderer, completion_job
from inference_stack.gateway.context import Gateway
from inference_stack.gateway.decode import decode_json
from inference_stack.gateway.job import Job
from inference_stack.gateway.progress import origin
from inference_stack.gateway.render import Renderer
from inference_stack.gateway.schema import ChatRequest, CompletionRequest
from inference_stack.gateway.streaming import EventStream, answer

MIB = 2**20


class ChatEndpoint:
    """POST /v1/chat/completions, as an ASGI application."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._decoder = msgspec.json.Decoder(ChatRequest)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._gateway.refuse_when_draining()
        raw = await _body(self._gateway, headers, receive)
        body = decode_json(raw, self._decoder)
        source = origin(self._gateway, headers, scope["path"], raw, bool(body.stream))
        state = scope["state"]
        job = await chat_job(self._gateway, body, headers, state["request_id"], state["arrival"], source)
        await _serve(self._gateway, job, ChatRenderer(job), scope, receive, send)


class CompletionEndpoint:
    """POST /v1/completions, as an ASGI application."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._decoder = msgspec.json.Decoder(CompletionRequest)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._gateway.refuse_when_draining()
        raw = await _body(self._gateway, headers, receive)
        body = decode_json(raw, self._decoder)
        source = origin(self._gateway, headers, scope["path"], raw, bool(body.stream))
        state = scope["state"]
        job = await completion_job(self._gateway, body, headers, state["request_id"], state["arrival"], source)
        await _serve(self._gateway, job, CompletionRenderer(job, body), scope, receive, send)


async def _body(gateway: Gateway, headers: Headers, receive: Receive) -> bytes:
    return await read_json_body(headers, receive, int(gateway.config.max_body_mb * MIB))


async def _serve(gateway: Gateway, job: Job, renderer: Renderer, scope: Scope, receive: Receive, send: Send) -> None:
    if job.stream:
        await EventStream(gateway, job, renderer, send).serve(receive)
    else:
        response = await answer(gateway, job, renderer, receive)
        await response(scope, receive, send)
