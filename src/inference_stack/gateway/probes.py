"""Small questions about the server: is it alive, can it serve, what does it serve, what does it count.

Nothing here waits for anything.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from inference_stack import __version__
from inference_stack.core.errors import model_not_found, unavailable
from inference_stack.core.fleet import ModelInfo
from inference_stack.gateway.context import Gateway
from inference_stack.gateway.replies import Health, ModelCard, ModelList, Probe, Version, WorkerHealth, encode
from inference_stack.telemetry.metrics import CONTENT_TYPE


def json_response(reply: object, status: int = 200) -> Response:
    """A reply as JSON."""
    return Response(encode(reply), status, media_type="application/json")


class Probes:
    """Handlers over one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def live(self, request: Request) -> Response:
        """The process answers."""
        return json_response(Probe())

    async def ready(self, request: Request) -> Response:
        """Whether requests can be served now: 503 while loading, after a failure, while every node drains, and from the first
        moment of a drain."""
        self._gateway.refuse_when_draining()
        nodes = self._gateway.dispatch.nodes()
        if not any(node.ready and not node.draining for node in nodes) or not self._gateway.dispatch.models():
            reasons = [node.error.message for node in nodes if node.error is not None]
            raise unavailable("; ".join(reasons) or "No model is ready yet.")
        return json_response(Probe())

    async def health(self, request: Request) -> Response:
        """The process and its workers; always 200, for people and for tests of what goes on inside."""
        nodes = self._gateway.dispatch.nodes()
        workers = [
            WorkerHealth(
                node=node.node,
                pid=worker.pid,
                device=worker.device,
                state=worker.state,
                restarts=worker.restarts,
                reason=worker.reason,
            )
            for node in nodes
            for worker in node.workers
        ]
        errors = [node.error.message for node in nodes if node.error is not None]
        models = sorted(self._gateway.dispatch.models())
        return json_response(
            Health(status=self._status(), version=__version__, models=models, workers=workers, errors=errors)
        )

    def _status(self) -> Literal["ok", "degraded", "draining"]:
        if self._gateway.draining:
            return "draining"
        nodes = self._gateway.dispatch.nodes()
        return "ok" if nodes and all(node.ready for node in nodes) else "degraded"

    async def version(self, request: Request) -> Response:
        """What is running."""
        return json_response(Version(__version__))

    async def metrics(self, request: Request) -> Response:
        """One scrape, in Prometheus's text format."""
        self._gateway.metrics.gateway_tasks.set(len(asyncio.all_tasks()))
        text = await self._gateway.scrape() if self._gateway.scrape else self._gateway.metrics.render()
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def models(self, request: Request) -> Response:
        """The models that can be asked for."""
        served = self._gateway.dispatch.models()
        return json_response(ModelList(data=[self._card(served[name]) for name in sorted(served)]))

    async def model(self, request: Request) -> Response:
        """One of them. Raises `InferenceError` (404)."""
        name = request.path_params["model"]
        found = self._gateway.dispatch.models().get(name)
        if found is None:
            raise model_not_found(name[:80])
        return json_response(self._card(found))

    def _card(self, model: ModelInfo) -> ModelCard:
        return ModelCard(
            id=model.name,
            created=self._gateway.started,
            owned_by="inference-stack",
            max_model_len=model.max_model_len,
        )
