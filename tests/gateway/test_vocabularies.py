"""Nodes whose tokens are other words: seen, refused, shown; and nodes that do not tell, which are taken at their word."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from inference_stack.core.errors import InferenceError
from inference_stack.core.fleet import NodeState
from inference_stack.core.seams import SystemClock
from inference_stack.dispatch.dispatcher import Limits
from inference_stack.gateway.admin import admin_app
from inference_stack.gateway.audit import Audit
from inference_stack.gateway.fleet import Fleet
from inference_stack.gateway.vocabularies import Vocabularies
from inference_stack.telemetry.metrics import Metrics
from inference_stack.wire.messages import Submit
from tests.dispatch.world import MODEL, request, state
from tests.gateway.test_fleet import heard, linked, until


def node(name: str, **vocabularies: str) -> NodeState:
    """A node's state with these models, and what it says of their vocabularies."""
    models = tuple(replace(MODEL, name=model, vocabulary=digest) for model, digest in vocabularies.items())
    return replace(state(name), models=models)


def names(found: NodeState) -> list[str]:
    return [info.name for info in found.models]


def test_the_first_node_decides_where_the_gateway_does_not_know() -> None:
    known = Vocabularies({})
    assert known.accepted(node("a", m="one")) == (node("a", m="one"), ())
    refused, reasons = known.accepted(node("b", m="two"))
    assert names(refused) == [] and refused.error is not None and refused.error.code == "vocabulary_mismatch"
    assert len(reasons) == 1 and all(word in reasons[0] for word in ("b ", "`m`", "one", "two"))


def test_the_gateways_own_goes_before_any_nodes() -> None:
    known = Vocabularies({"m": "own", "other": ""})
    assert names(known.accepted(node("a", m="one"))[0]) == []
    assert known.accepted(node("b", m="own")) == (node("b", m="own"), ())
    assert known.accepted(node("b", other="any")) == (node("b", other="any"), ())


@pytest.mark.parametrize("own", [{}, {"m": "own"}])
def test_a_node_that_does_not_tell_is_accepted_and_decides_nothing(own: Mapping[str, str]) -> None:
    known = Vocabularies(own)
    assert known.accepted(node("old", m="")) == (node("old", m=""), ())
    assert names(known.accepted(node("new", m="own"))[0]) == ["m"]


def test_other_models_of_a_node_are_still_used() -> None:
    found, reasons = Vocabularies({"m": "own"}).accepted(node("a", m="one", good="two"))
    assert names(found) == ["good"] and found.error is None and len(reasons) == 1


def fleet() -> Fleet:
    return Fleet("g", Limits(), 5.0, SystemClock(), Metrics(), vocabularies={"m": "own"})


async def test_a_node_with_other_words_gets_no_requests(caplog: pytest.LogCaptureFixture) -> None:
    gateway = fleet()
    async with linked(gateway, "right") as right, linked(gateway, "wrong") as wrong:
        with caplog.at_level(logging.ERROR):
            for _ in range(2):
                await wrong.send(node("wrong", m="other"))
            await until(lambda: gateway.refused("wrong"))
            for number in range(4):
                gateway.submit(request(f"r{number}"), lambda delta: None)
                message = await heard(right)
                assert isinstance(message, Submit)
        assert [record.message for record in caplog.records].count(f"node wrong: {gateway.refused('wrong')[0]}") == 1
        await wrong.send(node("wrong", m="own"))
        await until(lambda: not gateway.refused("wrong"))


async def test_alone_it_is_a_clear_error_and_administrators_see_why(tmp_path: Path) -> None:
    gateway = fleet()
    async with linked(gateway) as only:
        await only.send(node("n", m="other"))
        await until(lambda: gateway.refused("n"))
        with pytest.raises(InferenceError, match="another vocabulary"):
            gateway.admit("m", 1)
        app = admin_app(gateway, b"", Audit(str(tmp_path / "audit"), SystemClock()), _no_requests)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://admin") as http:
            (seen,) = (await http.get("/admin/v1/nodes")).json()
    assert seen["models"] == [] and seen["refused"] == [seen["error"]] and "another vocabulary" in seen["error"]
    assert gateway.refused("n") == ()


async def _no_requests() -> list[bytes]:
    return []
