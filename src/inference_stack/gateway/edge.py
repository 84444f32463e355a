"""The outermost layer of every request: its id, its time, its count, and the promise that it gets an answer.

Whatever goes wrong inside becomes OpenAI's error JSON here, with the request's id, and a traceback in the log.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inference_stack.core.errors import INVALID_REQUEST, NOT_FOUND, ErrorInfo, InferenceError
from inference_stack.gateway.context import Gateway
from inference_stack.gateway.errors import CLIENT_CLOSED, error_response, internal_error
from inference_stack.gateway.headers import request_id
from inference_stack.gateway.streaming import Gone


class Edge:
    """ASGI middleware. `scope["state"]` carries `request_id` and `arrival` (seconds of the gateway's clock) inwards.

    `direct` are applications by method and path that need no routing: nearly all requests are for them, and each event of a stream
    would pass Starlette's layers.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway, direct: Mapping[tuple[str, str], ASGIApp]) -> None:
        self._app = app
        self._gateway = gateway
        self._direct = direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(self._gateway, scope, send)
        direct = self._direct.get((scope["method"], scope["path"]))
        try:
            if direct is not None:
                visit.path = scope["path"]
                await direct(scope, receive, visit.send)
            else:
                await self._app(scope, receive, visit.send)
        except InferenceError as error:
            await visit.fail(error.info, receive)
        except (Gone, ClientDisconnect):
            visit.status = CLIENT_CLOSED
        except Exception:
            self._gateway.log.exception("a request failed", extra={"fields": {"request": visit.request_id}})
            await visit.fail(internal_error(visit.request_id), receive)
        finally:
            visit.count()


class _Visit:
    """One request passing the edge."""

    def __init__(self, gateway: Gateway, scope: Scope, send: Send) -> None:
        self._gateway = gateway
        self._scope = scope
        self._send = send
        self._arrival = gateway.clock.now()
        self.request_id = request_id(Headers(scope=scope))
        self.status = 0
        self.path = ""
        scope["state"] = {**scope.get("state", {}), "request_id": self.request_id, "arrival": self._arrival}

    async def send(self, message: Message) -> None:
        """Pass an answer on; its first message gets our headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            elapsed = round((self._gateway.clock.now() - self._arrival) * 1000)
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self.request_id.encode()),
                (b"openai-processing-ms", str(elapsed).encode()),
            ]
        await self._send(message)

    async def fail(self, info: ErrorInfo, receive: Receive) -> None:
        """Answer with an error, if nothing was answered yet; otherwise the broken connection says it."""
        if self.status:
            raise ConnectionAbortedError(info.message)
        await error_response(info)(self._scope, receive, self.send)

    def count(self) -> None:
        """Enter the request into the metrics. Paths are counted by route, so that clients cannot invent labels."""
        path = self.path or getattr(self._scope.get("route"), "path", "unknown")
        self._gateway.metrics.requests.labels(path, str(self.status)).inc()


async def http_problem(request: Request, problem: Exception) -> Response:
    """Starlette's own refusals (no such path, wrong method) in OpenAI's words."""
    status = problem.status_code if isinstance(problem, HTTPException) else 500
    headers = problem.headers if isinstance(problem, HTTPException) else None
    shown = f"{request.method} {request.url.path[:200]}"
    if status == 404:
        info = ErrorInfo(message=f"Unknown request URL: {shown}.", type=NOT_FOUND, code="unknown_url", status=404)
    elif status == 405:
        message = f"Not allowed to {request.method} on {request.url.path[:200]}."
        info = ErrorInfo(message=message, type=INVALID_REQUEST, code="method_not_supported", status=405)
    else:
        info = ErrorInfo(message=str(problem), type=INVALID_REQUEST, status=status)
    return error_response(info, headers)
