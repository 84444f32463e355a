"""The OpenAPI 3.1 description, generated from the route table and the typed structs, and a page that shows it.

Nothing is described by hand: what the structs check is what the description says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from inference_stack import __version__
from inference_stack.gateway.endpoints import Endpoint
from inference_stack.gateway.errors import ErrorReply

REF: Final = "#/components/schemas/{name}"
MEANING: Final = {
    400: "The request is wrong; `param` and `code` say how.",
    404: "No such model.",
    408: "The deadline passed before anything was sent.",
    409: "The stream cannot be resumed: the answer would not be the same.",
    413: "The body is too large.",
    415: "The body is not declared to be JSON.",
    429: "The queue is full; Retry-After says when to come back.",
    500: "The server failed.",
    503: "Nothing can serve this now: loading or draining. Retry-After says when to come back.",
}
HEADERS: Final = {
    "x-request-id": ("An id to find this request by; echoed if it can be, else one is made.", ""),
    "x-priority": (
        "realtime, standard, batch, or -100 to 100; higher is more important.",
        "realtime|standard|batch|-?(100|[0-9]{1,2})",
    ),
    "x-deadline-ms": ("Milliseconds from receipt after which the answer is worthless.", "[1-9][0-9]{0,6}"),
    "last-event-id": (
        "The last id of a stream that broke off: it goes on from there, if the body is the same, byte for byte.",
        "",
    ),
    "x-ttft-deadline-ms": ("Milliseconds from receipt until the first token must come.", "[1-9][0-9]{0,6}"),
}
RETRY: Final = {
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "string"}, "required": True},
    "retry-after-ms": {"description": "Milliseconds to wait.", "schema": {"type": "string"}, "required": True},
}
STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code,pre{font:14px ui-monospace,monospace}pre{overflow:auto;background:#8881;padding:1rem}"
    "table{border-collapse:collapse}td{padding:.2rem 1rem .2rem 0;vertical-align:top}"
)


class Document:
    """The description of a route table, made once."""

    def __init__(self, table: Sequence[Endpoint]) -> None:
        self._table = table
        self._json = msgspec.json.encode(describe(table))
        self._page = _page(table)

    def routes(self) -> list[Route]:
        """Where to read it."""
        return [Route("/openapi.json", self._openapi), Route("/docs", self._docs)]

    async def _openapi(self, request: Request) -> Response:
        return Response(self._json, media_type="application/json")

    async def _docs(self, request: Request) -> Response:
        return HTMLResponse(self._page)


def describe(table: Sequence[Endpoint]) -> dict[str, Any]:
    """The OpenAPI object."""
    types = [t for endpoint in table for t in (endpoint.body, endpoint.reply, endpoint.chunk) if t is not None]
    _, components = msgspec.json.schema_components([*types, ErrorReply], ref_template=REF)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in table:
        path = re.sub(r":path\}", "}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Inference Stack",
            "version": __version__,
            "description": "Serving of language models with OpenAI's API.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{endpoint.method.lower()}{re.sub(r'[^a-z0-9]+', '_', endpoint.path.lower())}".rstrip("_"),
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "parameters": _parameters(endpoint),
        "responses": {"200": _success(endpoint), **{str(status): _error(status) for status in endpoint.errors}},
    }
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": REF.format(name=endpoint.body.__name__)}}},
        }
    return operation


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    in_path = [
        {"name": name, "in": "path", "required": True, "description": text, "schema": {"type": "string"}}
        for name, text in endpoint.parameters.items()
    ]
    in_header = [
        {
            "name": name,
            "in": "header",
            "required": False,
            "description": HEADERS[name][0],
            "schema": {"type": "string", **({"pattern": f"^({HEADERS[name][1]})$"} if HEADERS[name][1] else {})},
        }
        for name in ("x-request-id", *endpoint.headers)
    ]
    return [*in_path, *in_header]


def _success(endpoint: Endpoint) -> dict[str, Any]:
    if endpoint.reply is None:
        return {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": REF.format(name=endpoint.reply.__name__)}}}
    description = "OK"
    if endpoint.chunk is not None:
        description = f"The answer; with `stream`, events whose data are `{endpoint.chunk.__name__}`, then `[DONE]`."
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {"description": description, "content": content}


def _error(status: int) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": MEANING[status],
        "content": {"application/json": {"schema": {"$ref": REF.format(name=ErrorReply.__name__)}}},
    }
    if status in (429, 503):
        described["headers"] = RETRY
    return described


def _page(table: Sequence[Endpoint]) -> str:
    """A page that needs nothing but itself and `/openapi.json`."""
    rows = "".join(_row(endpoint) for endpoint in table)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Inference Stack {__version__}</title>"
        f"<style>{STYLE}</style><h1>Inference Stack {__version__}</h1>"
        "<p>OpenAI's API. The machine-readable description is <a href=openapi.json>openapi.json</a>.</p>"
        f"<table>{rows}</table>{''.join(_section(endpoint) for endpoint in table)}</html>"
    )


def _row(endpoint: Endpoint) -> str:
    return f"<tr><td><code>{endpoint.method}</code><td><code>{escape(endpoint.path)}</code><td>{endpoint.summary}"


def _section(endpoint: Endpoint) -> str:
    types = [t for t in (endpoint.body, endpoint.reply) if t is not None]
    if not types:
        return ""
    shown = "".join(f"<p>{t.__name__}</p><pre>{escape(_schema_text(t))}</pre>" for t in types)
    return f"<details><summary><code>{endpoint.method} {escape(endpoint.path)}</code></summary>{shown}</details>"


def _schema_text(type_: type) -> str:
    _, components = msgspec.json.schema_components([type_], ref_template=REF)
    return msgspec.json.format(msgspec.json.encode(components[type_.__name__])).decode()
