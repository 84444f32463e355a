"""Calls that are answered at once: objects, errors, retries, other servers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from cutting import Answer, Server, refusal, running, threaded

import inference_stack_client as sdk

MESSAGES = [{"role": "user", "content": "Grüße"}]
OK = Answer(b'{"choices": [{"message": {"content": "yes"}}], "items": 3}', headers={"x-request-id": "r1"})


@pytest.fixture
def unused() -> Iterator[str]:
    """An address where nobody listens."""
    with threaded() as server:
        url = server.url
    yield url


def ask(server: Server, **options: object) -> sdk.Object:
    with sdk.Client(server.url, "secret", **options) as client:  # type: ignore[arg-type]
        return client.chat.completions.create(model="m", messages=MESSAGES, seed=3)


def test_an_answer_can_be_read_as_attributes_and_as_a_dictionary() -> None:
    with threaded(OK) as server:
        answer = ask(server)
    assert answer.choices[0].message.content == answer["choices"][0]["message"]["content"] == "yes"
    assert answer["items"] == 3
    with pytest.raises(AttributeError, match="no field 'usage'"):
        _ = answer.usage


def test_what_is_sent() -> None:
    with threaded(OK) as server:
        ask(server, headers={"x-priority": "5"})
        (request,) = server.received
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert json.loads(request.body) == {"model": "m", "messages": MESSAGES, "stream": False, "seed": 3}
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["x-priority"] == "5"


def test_arguments_about_the_call_are_not_sent() -> None:
    with threaded(OK) as server, sdk.Client(server.url) as client:
        client.completions.create(
            model="m", prompt="p", timeout=3, max_retries=0, extra_headers={"x-a": "b"}, extra_body={"top_k": 2}
        )
        (request,) = server.received
    assert json.loads(request.body) == {"model": "m", "prompt": "p", "stream": False, "top_k": 2}
    assert request.headers["x-a"] == "b"


def test_the_raw_response() -> None:
    with threaded(OK) as server, sdk.Client(server.url) as client:
        raw = client.completions.with_raw_response.create(model="m", prompt="p")
    assert (raw.status_code, raw.request_id, raw.parse()["items"]) == (200, "r1", 3)
    assert isinstance(raw.http_response, httpx.Response)


def test_an_answer_that_is_no_json() -> None:
    with threaded(Answer(b"<h1>Welcome</h1>")) as server, pytest.raises(sdk.ClientError, match="no JSON"):
        ask(server)


def test_models() -> None:
    with threaded(Answer(b'{"data": [{"id": "m"}]}')) as server, sdk.Client(server.url + "/base/") as client:
        assert [model.id for model in client.models.list().data] == ["m"]
        assert server.received[0].path == "/base/models"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, sdk.BadRequestError),
        (401, sdk.AuthenticationError),
        (403, sdk.PermissionDeniedError),
        (404, sdk.NotFoundError),
        (408, sdk.RequestTimeoutError),
        (409, sdk.ConflictError),
        (413, sdk.RequestTooLargeError),
        (418, sdk.APIStatusError),
        (422, sdk.UnprocessableEntityError),
        (429, sdk.RateLimitError),
        (500, sdk.InternalServerError),
        (503, sdk.InternalServerError),
    ],
)
def test_errors_are_typed(status: int, kind: type[sdk.APIStatusError]) -> None:
    with threaded(refusal(status, "why", **{"x-request-id": "r2"})) as server, pytest.raises(kind) as caught:
        ask(server, max_retries=0)
    error = caught.value
    assert type(error) is kind
    assert (error.status_code, error.code, error.param, error.type) == (status, "why", "p", "server_error")
    assert error.request_id == "r2"
    assert "because of why" in str(error)


def test_an_error_of_something_in_between() -> None:
    with threaded(Answer(b"<h1>Bad gateway</h1>", 502)) as server, pytest.raises(sdk.InternalServerError, match="Bad"):
        ask(server, max_retries=0)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    with threaded(refusal(status), refusal(status), OK) as server:
        assert ask(server)["items"] == 3
        bodies = {request.body for request in server.received}
    assert len(bodies) == 1


def test_retries_end() -> None:
    with threaded(refusal(429)) as server, pytest.raises(sdk.RateLimitError):
        ask(server, max_retries=2)
    assert len(server.received) == 3


@pytest.mark.parametrize(("status", "said", "requests"), [(400, "true", 2), (503, "false", 1)])
def test_the_server_says_whether_to_retry(status: int, said: str, requests: int) -> None:
    with threaded(refusal(status, **{"x-should-retry": said})) as server, pytest.raises(sdk.APIStatusError):
        ask(server, max_retries=1)
    assert len(server.received) == requests


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5, 1.5),
        ({"retry-after": "9"}, 9, 9),
        ({"retry-after": "900"}, 0.375, 0.5),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.375, 0.5),
        ({}, 0.375, 0.5),
    ],
)
def test_pauses_are_as_the_server_asks(headers: dict[str, str], low: float, high: float, pauses: list[float]) -> None:
    with threaded(refusal(429, **headers), OK) as server:
        ask(server)
    (seconds,) = pauses
    assert low <= seconds <= high


def test_pauses_grow_to_eight_seconds(pauses: list[float]) -> None:
    with threaded(refusal(500)) as server, pytest.raises(sdk.InternalServerError):
        ask(server, max_retries=7)
    assert [seconds > 0.75 * full - 0.001 for seconds, full in zip(pauses, [0.5, 1, 2, 4, 8, 8, 8], strict=True)] == [
        True
    ] * 7
    assert max(pauses) <= 8


def test_a_server_that_cannot_be_reached(unused: str) -> None:
    with sdk.Client(unused, max_retries=1) as client, pytest.raises(sdk.APIConnectionError):
        client.models.list()


def test_a_server_that_does_not_answer() -> None:
    with (
        threaded(Answer(b"{}", cut=1, hold=True)) as server,
        sdk.Client(server.url, timeout=0.05, max_retries=0) as client,
        pytest.raises(sdk.APITimeoutError),
    ):
        client.completions.with_raw_response.create(model="m", prompt="p", stream=False).parse()


@pytest.mark.parametrize("status", [502, 503, 504, None])
def test_another_server_is_asked_at_once(status: int | None, unused: str, pauses: list[float]) -> None:
    with threaded(refusal(status or 503)) as away, threaded(OK) as there:
        first = unused if status is None else away.url
        with sdk.Client([first, there.url], max_retries=0) as client:
            assert client.completions.create(model="m", prompt="p")["items"] == 3
    assert not pauses


def test_a_full_queue_is_no_reason_to_ask_another(pauses: list[float]) -> None:
    with threaded(refusal(429), OK) as first, threaded(OK) as other, sdk.Client([first.url, other.url]) as client:
        client.completions.create(model="m", prompt="p")
        assert (len(first.received), len(other.received)) == (2, 0)
    assert len(pauses) == 1


@pytest.mark.parametrize("url", ["", "localhost:80", "ftp://x"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match="no HTTP address"):
        sdk.Client(url)


def test_no_address_at_all() -> None:
    with pytest.raises(ValueError, match="at least one"):
        sdk.Client([])


async def test_the_asynchronous_client_does_the_same() -> None:
    async with running(refusal(503), OK) as server, sdk.AsyncClient(server.url) as client:
        answer = await client.chat.completions.create(model="m", messages=MESSAGES)
        assert answer.choices[0].message.content == "yes"
        assert (await client.models.list())["items"] == 3
        with pytest.raises(sdk.NotFoundError):
            server.script = [refusal(404)]
            await client.with_options(max_retries=0).completions.create(model="m", prompt="p")


async def test_the_asynchronous_raw_response() -> None:
    async with running(OK) as server, sdk.AsyncClient(server.url) as client:
        raw = await client.completions.with_raw_response.create(model="m", prompt="p")
        assert (raw.request_id, raw.parse()["items"]) == ("r1", 3)
