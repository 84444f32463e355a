"""The administrators' API: what it shows, what it orders, who may ask, and what is written down."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from inference_stack.core.errors import InferenceError
from inference_stack.core.seams import SystemClock
from inference_stack.gateway.admin import admin_app, read_token, requests_json
from inference_stack.gateway.audit import Audit
from inference_stack.gateway.fleet import Fleet
from inference_stack.wire.memory import MemoryLink
from inference_stack.wire.messages import DrainNode, LoadModel, UnloadModel
from tests.dispatch.world import request
from tests.gateway.test_fleet import fleet, heard, linked


@asynccontextmanager
async def house(path: Path, token: bytes = b"") -> AsyncIterator[tuple[httpx.AsyncClient, Fleet, MemoryLink]]:
    """The API over a gateway with one node, `n`."""
    gateway = fleet()
    async with linked(gateway, watched=False) as node:
        clock = SystemClock()

        async def requests() -> list[bytes]:
            return [requests_json(gateway, clock)]

        app = admin_app(gateway, token, Audit(str(path / "audit"), clock), requests)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://admin/admin/v1") as http:
            yield http, gateway, node


def audit(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (path / "audit").read_text().splitlines()]


async def test_nodes_models_and_requests_are_shown(tmp_path: Path) -> None:
    async with house(tmp_path) as (http, gateway, node):
        gateway.submit(request(), lambda delta: None)
        await heard(node)
        (seen,) = (await http.get("/nodes")).json()
        assert (seen["node"], seen["address"], seen["ready"], seen["models"], seen["requests"]) == (
            "n",
            "n",
            True,
            ["m"],
            1,
        )
        (model,) = (await http.get("/models")).json()
        assert model == {"model": "m", "nodes": ["n"], "numerics_ids": ["x"], "max_running": 4}
        (running,) = (await http.get("/requests")).json()
        assert (running["request"], running["node"], running["prompt_tokens"], running["moves"]) == ("r", "n", 2, 0)


async def test_orders_reach_the_node_and_are_audited(tmp_path: Path) -> None:
    async with house(tmp_path) as (http, _, node):
        assert (await http.post("/nodes/n/drain", json={"seconds": 5})).status_code == 202
        assert await heard(node) == DrainNode(seconds=5)
        await http.post("/nodes/n/drain")
        assert await heard(node) == DrainNode(seconds=30)
        await http.post("/nodes/n/undrain")
        assert await heard(node) == DrainNode(seconds=0, undo=True)
        await http.post("/nodes/n/models", json={"model": "org/model", "name": "x"})
        assert await heard(node) == LoadModel(model="org/model", name="x")
        await http.delete("/nodes/n/models/org/model")
        assert await heard(node) == UnloadModel(name="org/model")
    actions = [(entry["action"], entry["target"], entry["outcome"]) for entry in audit(tmp_path)]
    assert actions == [(action, "n", "ordered") for action in ("drain", "drain", "undrain", "load", "unload")]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/nodes/other/drain", {}, 404),
        ("POST", "/nodes/n/drain", {"seconds": -1}, 400),
        ("POST", "/nodes/n/drain", {"second": 1}, 400),
        ("POST", "/nodes/n/models", {}, 400),
        ("POST", "/nodes/n/models", {"model": ""}, 400),
        ("GET", "/nodes/n/drain", None, 405),
        ("GET", "/nothing", None, 404),
    ],
)
async def test_what_cannot_be_done_is_said(tmp_path: Path, method: str, path: str, body: object, status: int) -> None:
    async with house(tmp_path) as (http, _, _node):
        answer = await http.request(method, path, json=body)
        assert answer.status_code == status and answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "given", [None, "Bearer", "Bearer wrong-token-wrong", "Basic correct-horse-battery", "bearer "]
)
async def test_without_the_token_nothing_is_shown_or_done(tmp_path: Path, given: str | None) -> None:
    async with house(tmp_path, b"correct-horse-battery") as (http, _, _node):
        headers = {} if given is None else {"authorization": given}
        for method, path in (("GET", "/nodes"), ("GET", "/requests"), ("POST", "/nodes/n/drain")):
            answer = await http.request(method, path, headers=headers)
            assert answer.status_code == 401 and "n" not in answer.json()
    assert [entry["outcome"] for entry in audit(tmp_path)] == ["refused: no valid token"]


async def test_with_the_token_everything_is(tmp_path: Path) -> None:
    async with house(tmp_path, b"correct-horse-battery") as (http, _, _node):
        answer = await http.get("/nodes", headers={"authorization": "Bearer correct-horse-battery"})
        assert answer.status_code == 200


def test_a_token_that_is_no_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").write_text("hunter2")
    with pytest.raises(InferenceError, match="at least"):
        read_token(str(tmp_path / "short"))
    with pytest.raises(InferenceError, match="cannot read"):
        read_token(str(tmp_path / "missing"))
