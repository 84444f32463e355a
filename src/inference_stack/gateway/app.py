"""The gateway's HTTP application: routes, handlers, and the one layer around them.

Everything it works with is passed in; nothing is read from the environment, and nothing runs until it is called.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from inference_stack.config.tree import ServerConfig
from inference_stack.core.seams import Clock
from inference_stack.frontend.load import Frontend
from inference_stack.gateway.api import Dispatch
from inference_stack.gateway.context import Gateway
from inference_stack.gateway.edge import Edge, http_problem
from inference_stack.gateway.endpoints import direct, endpoints
from inference_stack.gateway.openapi import Document
from inference_stack.gateway.resume import ResumeTokens, resume_secret
from inference_stack.telemetry.logs import LOGGER
from inference_stack.telemetry.metrics import Metrics


def create_app(
    dispatch: Dispatch,
    frontends: Mapping[str, Frontend],
    config: ServerConfig,
    clock: Clock,
    metrics: Metrics,
    log: logging.Logger | None = None,
    secret: bytes | None = None,
) -> Starlette:
    """The ASGI application. `frontends` are by the names that requests call models by; gateways with the same `secret` resume
    each other's streams.

    `app.state.gateway.begin_drain()` makes it refuse new requests while running streams go on.
    """
    gateway = Gateway(
        dispatch=dispatch,
        frontends=frontends,
        config=config,
        clock=clock,
        metrics=metrics,
        log=log or logging.getLogger(LOGGER),
        started=int(clock.wall()),
        resume_tokens=ResumeTokens(secret or resume_secret("")),
    )
    table = endpoints(gateway)
    document = Document(table)
    app = Starlette(
        routes=[*(endpoint.route() for endpoint in table), *document.routes()],
        middleware=[Middleware(Edge, gateway=gateway, direct=direct(table))],
        exception_handlers={HTTPException: http_problem},
    )
    app.state.gateway = gateway
    return app
