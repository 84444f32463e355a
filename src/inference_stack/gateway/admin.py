"""The administrators' API, /admin/v1: nodes, models, requests; drain, load, unload. On a port of its own, never the clients'.

Every change is audited, refused ones too. What a change means is the nodes' business: they are told, and tell everybody.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from inference_stack.core.errors import ErrorInfo, InferenceError, invalid
from inference_stack.core.fleet import NodeState
from inference_stack.core.seams import Clock
from inference_stack.dispatch.flight import Flight
from inference_stack.gateway.audit import Audit
from inference_stack.gateway.body import read_json_body
from inference_stack.gateway.decode import decode_json
from inference_stack.gateway.edge import http_problem
from inference_stack.gateway.errors import error_response, refuse
from inference_stack.gateway.fleet import Fleet
from inference_stack.gateway.probes import json_response
from inference_stack.wire.messages import DrainNode, LoadModel, ToNode, UnloadModel

MAX_BODY_BYTES = 1 << 16
TOKEN_BYTES = 16


Order = TypeVar("Order")
Requests = Callable[[], Awaitable[list[bytes]]]
"""The `requests_json` of every process that serves together with this one."""


class WorkerView(msgspec.Struct):
    """A worker process."""

    pid: int
    device: str
    state: str
    restarts: int
    reason: str


class NodeView(msgspec.Struct):
    """A node in reach. `address` is how this gateway reaches it; `requests` are those that it has there; `refused` says why models
    that it serves are not used."""

    node: str
    address: str
    ready: bool
    draining: bool
    models: list[str]
    workers: list[WorkerView]
    requests: int
    error: str | None
    refused: list[str]


class ModelView(msgspec.Struct):
    """A model, and where it can be asked for now. `numerics_ids`: nodes of equal ones emit the same tokens."""

    model: str
    nodes: list[str]
    numerics_ids: list[str]
    max_running: int


class RequestView(msgspec.Struct):
    """A completion in flight. `node` is None while it waits; `moves` counts how often it went on elsewhere."""

    request: str
    model: str
    node: str | None
    priority: int
    attempt: int
    moves: int
    prompt_tokens: int
    emitted_tokens: int
    seconds: float


class DrainOrder(msgspec.Struct, forbid_unknown_fields=True):
    """How many seconds requests may go on before they move."""

    seconds: float = 30.0


class LoadOrder(msgspec.Struct, forbid_unknown_fields=True):
    """A model to serve too, under `name` if given."""

    model: str
    name: str = ""


def read_token(path: str) -> bytes:
    """The bearer token in a file. Raises `InferenceError` when it cannot be read or is too short to be a secret."""
    try:
        token = Path(path).expanduser().read_bytes().strip()
    except OSError as error:
        raise invalid(f"cannot read {path}: {error.strerror}", param="admin.token", code="invalid_config") from error
    if len(token) < TOKEN_BYTES:
        raise invalid(f"{path} must hold at least {TOKEN_BYTES} bytes", param="admin.token", code="invalid_config")
    return token


class Admin:
    """Handlers over one gateway's fleet."""

    def __init__(self, fleet: Fleet, audit: Audit, requests: Requests) -> None:
        self._fleet = fleet
        self._audit = audit
        self._requests = requests

    async def nodes(self, request: Request) -> Response:
        """The nodes in reach."""
        counts = Counter(view.node for view in await self._all_requests())
        return json_response(
            [_node(key, state, counts[key], self._fleet.refused(key)) for key, state in self._fleet.keys().items()]
        )

    async def models(self, request: Request) -> Response:
        """What is served where."""
        views: dict[str, ModelView] = {}
        for state in self._fleet.nodes():
            for info in state.models if state.ready else ():
                view = views.setdefault(info.name, ModelView(info.name, [], [], 0))
                view.nodes.append(state.node)
                view.max_running += info.max_running
                if info.numerics_id not in view.numerics_ids:
                    view.numerics_ids.append(info.numerics_id)
        return json_response([views[name] for name in sorted(views)])

    async def requests(self, request: Request) -> Response:
        """The completions in flight."""
        return json_response(await self._all_requests())

    async def drain(self, request: Request) -> Response:
        """A node takes nothing new, and its requests end or move."""
        order = await _body(request, DrainOrder)
        if not 0 <= order.seconds <= 86_400:
            raise invalid("seconds must be from 0 to 86400", param="seconds", code="invalid_value")
        return self._tell(request, "drain", DrainNode(seconds=order.seconds), seconds=order.seconds)

    async def undrain(self, request: Request) -> Response:
        """A node takes requests again."""
        return self._tell(request, "undrain", DrainNode(seconds=0.0, undo=True))

    async def load(self, request: Request) -> Response:
        """A node serves a model too."""
        order = await _body(request, LoadOrder)
        if not order.model:
            raise invalid("model must not be empty", param="model", code="invalid_value")
        return self._tell(request, "load", LoadModel(model=order.model, name=order.name), model=order.model)

    async def unload(self, request: Request) -> Response:
        """A node serves a model no longer."""
        name = request.path_params["model"]
        return self._tell(request, "unload", UnloadModel(name=name), model=name)

    def _tell(self, request: Request, action: str, order: ToNode, **details: object) -> Response:
        name, who = request.path_params["node"], _who(request)
        found = [key for key, state in self._fleet.keys().items() if name in (key, state.node)]
        if not found:
            self._audit.record(who, action, name, "not found", **details)
            raise refuse(404, f"There is no node `{name[:80]}` in reach.", param="node", code="node_not_found")
        if len(found) > 1:
            self._audit.record(who, action, name, "ambiguous", **details)
            raise refuse(
                409, f"Several nodes are called `{name[:80]}`; use an address.", param="node", code="ambiguous_node"
            )
        self._fleet.tell(found[0], order)
        self._audit.record(who, action, name, "ordered", **details)
        return json_response({"node": name, "ordered": action}, 202)

    async def _all_requests(self) -> list[RequestView]:
        return [view for part in await self._requests() for view in msgspec.json.decode(part, type=list[RequestView])]


def requests_json(fleet: Fleet, clock: Clock) -> bytes:
    """One process's completions in flight, as the JSON list that `/admin/v1/requests` is joined from."""
    now = clock.now()
    return msgspec.json.encode([_request(flight, now) for flight in fleet.flights()])


def _request(flight: Flight, now: float) -> RequestView:
    request, node = flight.request, flight.node
    return RequestView(
        request=flight.id,
        model=request.model,
        node=node.key if node is not None and flight.id in node.running else None,
        priority=request.qos.priority,
        attempt=max(flight.attempt, 0),
        moves=flight.moves,
        prompt_tokens=len(request.continuation.prompt),
        emitted_tokens=len(flight.emitted),
        seconds=round(now - request.arrival, 3),
    )


def _node(key: str, state: NodeState, requests: int, refused: Sequence[str]) -> NodeView:
    return NodeView(
        node=state.node,
        address=key,
        ready=state.ready,
        draining=state.draining,
        models=sorted(info.name for info in state.models),
        workers=[WorkerView(one.pid, one.device, one.state, one.restarts, one.reason) for one in state.workers],
        requests=requests,
        error=None if state.error is None else state.error.message,
        refused=list(refused),
    )


def _who(request: Request) -> str:
    return "local" if request.client is None else request.client.host


async def _body(request: Request, kind: type[Order]) -> Order:
    """The order in a request's body; without a body, everything is at its default."""
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        data = b"{}"
    else:
        data = await read_json_body(request.headers, request.receive, MAX_BODY_BYTES)
    return decode_json(data, msgspec.json.Decoder(kind))


class Guard(BaseHTTPMiddleware):
    """Asks for the bearer token, where there is one; turns refusals into OpenAI's error JSON."""

    def __init__(self, app: Callable[..., Awaitable[None]], token: bytes, audit: Audit) -> None:
        super().__init__(app)
        self._token = token
        self._audit = audit

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """One request."""
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        right = kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token)
        if self._token and not right:
            if request.method != "GET":
                self._audit.record(
                    _who(request), request.method.lower(), request.url.path[:200], "refused: no valid token"
                )
            return error_response(
                ErrorInfo(
                    message="A valid bearer token is needed.",
                    type="authentication_error",
                    code="invalid_token",
                    status=401,
                )
            )
        return await call_next(request)


async def _refused(request: Request, problem: Exception) -> Response:
    if not isinstance(problem, InferenceError):
        raise problem
    return error_response(problem.info)


def admin_app(fleet: Fleet, token: bytes, audit: Audit, requests: Requests) -> Starlette:
    """The ASGI application. An empty `token` asks for none."""
    admin = Admin(fleet, audit, requests)
    node = "/admin/v1/nodes/{node}"
    return Starlette(
        routes=[
            Route("/admin/v1/nodes", admin.nodes),
            Route("/admin/v1/models", admin.models),
            Route("/admin/v1/requests", admin.requests),
            Route(f"{node}/drain", admin.drain, methods=["POST"]),
            Route(f"{node}/undrain", admin.undrain, methods=["POST"]),
            Route(f"{node}/models", admin.load, methods=["POST"]),
            Route(f"{node}/models/{{model:path}}", admin.unload, methods=["DELETE"]),
        ],
        middleware=[Middleware(Guard, token=token, audit=audit)],
        exception_handlers={InferenceError: _refused, HTTPException: http_problem},
    )
