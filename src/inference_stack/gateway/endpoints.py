"""The route table: each endpoint with what it takes and what it answers. Routing and OpenAPI are both made from it.

Holds no logic of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from inference_stack.gateway import replies, schema
from inference_stack.gateway.context import Gateway
from inference_stack.gateway.generate import ChatEndpoint, CompletionEndpoint
from inference_stack.gateway.probes import Probes
from inference_stack.gateway.tokens import Tokens

Handler = Callable[[Request], Awaitable[Response]] | ASGIApp

BODY_ERRORS = (400, 404, 413, 415, 503)
GENERATION = ("x-priority", "x-deadline-ms", "x-ttft-deadline-ms", "last-event-id")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One operation. `reply` None is text; `chunk` is the type of a stream's events; `errors` are its other statuses."""

    method: str
    path: str
    handler: Handler
    summary: str
    tag: str
    body: type | None = None
    reply: type | None = None
    chunk: type | None = None
    errors: tuple[int, ...] = ()
    headers: tuple[str, ...] = ()
    parameters: dict[str, str] = field(default_factory=dict)

    def route(self) -> Route:
        """The Starlette route."""
        return Route(self.path, self.handler, methods=[self.method])


def endpoints(gateway: Gateway) -> list[Endpoint]:
    """Every endpoint of the gateway, in the order of the documentation."""
    return [*_generation(gateway), *_tokens(gateway), *_models(gateway), *_operations(gateway)]


def direct(table: Sequence[Endpoint]) -> dict[tuple[str, str], ASGIApp]:
    """The endpoints that stream, by method and path: applications that need nothing of a router."""
    return {
        (one.method, one.path): one.handler
        for one in table
        if isinstance(one.handler, ChatEndpoint | CompletionEndpoint)
    }


def _generation(gateway: Gateway) -> list[Endpoint]:
    return [
        Endpoint(
            method="POST",
            path="/v1/chat/completions",
            handler=ChatEndpoint(gateway),
            summary="Continue a conversation",
            tag="generation",
            body=schema.ChatRequest,
            reply=replies.ChatCompletion,
            chunk=replies.ChatCompletionChunk,
            errors=(*BODY_ERRORS, 408, 409, 429, 500),
            headers=GENERATION,
        ),
        Endpoint(
            method="POST",
            path="/v1/completions",
            handler=CompletionEndpoint(gateway),
            summary="Continue a text",
            tag="generation",
            body=schema.CompletionRequest,
            reply=replies.TextCompletion,
            chunk=replies.TextCompletion,
            errors=(*BODY_ERRORS, 408, 409, 429, 500),
            headers=GENERATION,
        ),
    ]


def _tokens(gateway: Gateway) -> list[Endpoint]:
    tokens = Tokens(gateway)
    return [
        Endpoint(
            method="POST",
            path="/tokenize",
            handler=tokens.tokenize,
            summary="Token ids of a text or of a conversation",
            tag="tokens",
            body=schema.TokenizeRequest,
            reply=replies.Tokenized,
            errors=BODY_ERRORS,
        ),
        Endpoint(
            method="POST",
            path="/detokenize",
            handler=tokens.detokenize,
            summary="The text of token ids",
            tag="tokens",
            body=schema.DetokenizeRequest,
            reply=replies.Detokenized,
            errors=BODY_ERRORS,
        ),
    ]


def _models(gateway: Gateway) -> list[Endpoint]:
    probes = Probes(gateway)
    return [
        Endpoint(
            method="GET",
            path="/v1/models",
            handler=probes.models,
            summary="The served models",
            tag="models",
            reply=replies.ModelList,
        ),
        Endpoint(
            method="GET",
            path="/v1/models/{model:path}",
            handler=probes.model,
            summary="One served model",
            tag="models",
            reply=replies.ModelCard,
            errors=(404,),
            parameters={"model": "The model's name."},
        ),
    ]


def _operations(gateway: Gateway) -> list[Endpoint]:
    probes = Probes(gateway)
    rows: list[tuple[str, Handler, str, type | None, tuple[int, ...]]] = [
        ("/health", probes.health, "The process and its workers", replies.Health, ()),
        ("/ready", probes.ready, "Whether requests can be served", replies.Probe, (503,)),
        ("/live", probes.live, "Whether the process answers", replies.Probe, ()),
        ("/metrics", probes.metrics, "Prometheus metrics", None, ()),
        ("/version", probes.version, "What is running", replies.Version, ()),
    ]
    return [
        Endpoint(
            method="GET", path=path, handler=handler, summary=summary, tag="operations", reply=reply, errors=errors
        )
        for path, handler, summary, reply, errors in rows
    ]
