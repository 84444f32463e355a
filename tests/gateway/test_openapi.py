"""The generated description is valid, complete, and agrees with what the server does."""

from __future__ import annotations

import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from schemathesis.checks import CHECKS
from starlette.routing import Route

from tests.gateway.house import chat_body, client, events, make_house, text_body

HOUSE = make_house()
HOUSE.script.delta_tokens = 50
schema = schemathesis.openapi.from_asgi("/openapi.json", HOUSE.app)
"""Requests that fit the schema may still be refused: what depends on the model is in no schema."""
MODEL_DEPENDENT = [CHECKS.get_one("positive_data_acceptance")]


def check(case: Any) -> None:
    """No 500, statuses and bodies as described, 503 and 429 only with Retry-After; bad requests are refused."""
    response = case.call_and_validate(excluded_checks=MODEL_DEPENDENT)
    if response.status_code in (429, 503):
        assert response.headers["retry-after"]


@schema.parametrize()
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_request_is_answered_as_described(case: Any) -> None:
    check(case)


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_many_requests_are_answered_as_described(case: Any) -> None:
    check(case)


def document() -> dict[str, Any]:
    return dict(schema.raw_schema)


def test_every_route_is_described() -> None:
    routes = {re.sub(r":path\}", "}", route.path) for route in HOUSE.app.routes if isinstance(route, Route)}
    assert set(document()["paths"]) == routes - {"/openapi.json", "/docs"}


def test_every_reference_leads_somewhere() -> None:
    names = re.findall(r"#/components/schemas/(\w+)", str(document()))
    assert set(names) <= set(document()["components"]["schemas"])


def test_constraints_are_those_of_validation() -> None:
    properties = document()["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"type": "number", "minimum": 0, "maximum": 2} in properties["temperature"]["anyOf"]
    assert document()["components"]["schemas"]["ChatRequest"]["additionalProperties"] is False


async def test_the_page_needs_nothing_from_elsewhere() -> None:
    async with client(make_house()) as http:
        page = (await http.get("/docs")).text
    assert "/v1/chat/completions" in page
    assert not re.search(r"(src|href)=\S*//", page)


async def test_answers_parse_as_openais_own_types() -> None:
    async with client(make_house()) as http:
        fields = {"n": 2, "logprobs": True, "top_logprobs": 1}
        ChatCompletion.model_validate((await http.post("/v1/chat/completions", json=chat_body(**fields))).json())
        Completion.model_validate((await http.post("/v1/completions", json=text_body(logprobs=1, n=2))).json())
        body = chat_body(stream=True, stream_options={"include_usage": True}, **fields)
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            for chunk in (await events(response.aiter_lines()))[:-1]:
                ChatCompletionChunk.model_validate(chunk)
