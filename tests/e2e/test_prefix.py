"""What was computed once is not computed again."""

from __future__ import annotations

import pytest

from tests.e2e.server import Server

pytestmark = pytest.mark.model

PREFIX_TOKENS = 1000


def ask(server: Server, prompt: list[int]) -> dict[str, object]:
    body = {"model": "smollm2", "prompt": prompt, "max_tokens": 1, "temperature": 0}
    response = server.http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json()["usage"])


def test_a_shared_prefix_is_taken_from_the_cache(server: Server) -> None:
    prefix = [100 + (7 * number) % 20_000 for number in range(PREFIX_TOKENS)]
    first = ask(server, [*prefix, 300, 301, 302])
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    second = ask(server, [*prefix, 400, 401, 402])
    details = second["prompt_tokens_details"]
    assert isinstance(details, dict) and details["cached_tokens"] >= 976
