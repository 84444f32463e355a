"""Streams that break: wherever the connection is cut, every event comes once."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from cutting import WORDS, Answer, Script, Server, chunk, events, refusal, resuming, running, stream, threaded

import inference_stack_client as sdk

TEXT = "".join(WORDS)


def words(client: sdk.Client, **fields: object) -> list[str]:
    with client.chat.completions.create(model="m", messages=[], stream=True, **fields) as found:
        return [event.choices[0].delta.content for event in found]


def read(*script: Answer | Script, **options: object) -> tuple[str, Server]:
    with threaded(*script) as server, sdk.Client(server.url, **options) as client:  # type: ignore[arg-type]
        return "".join(words(client)), server


async def read_async(server: Server, **options: object) -> str:
    client = sdk.AsyncClient(server.url, **options)  # type: ignore[arg-type]
    found = await client.chat.completions.create(model="m", messages=[], stream=True)
    return "".join([event.choices[0].delta.content async for event in found])


def test_an_undisturbed_stream() -> None:
    text, server = read(stream())
    assert text == TEXT
    assert len(server.received) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_however_the_bytes_come(size: int, end: str) -> None:
    assert read(stream(events(end=end), slices=size))[0] == TEXT


def cuts(whole: bytes) -> list[int]:
    """Every byte of two events (their fields, a split character, the empty lines, the beginning of the next), and of the end."""
    first, last = whole.index(b"\n\n") + 2, whole.rindex(b"id: ")
    return [*range(0, 2 * first + 12), *range(last, len(whole) - 1)]


@pytest.mark.parametrize("every", [1, 3])
async def test_cut_at_every_byte(every: int) -> None:
    """With ids on every third event, those behind the last id come again, and are not shown twice."""
    whole = events(every=every)
    async with httpx.AsyncClient() as http:
        for cut in cuts(whole):
            async with running(stream(whole, cut=cut), resuming(every=every)) as server:
                assert await read_async(server, http_client=http) == TEXT, cut
                first, again = server.received
            had = [event for event in whole[:cut].split(b"\n\n")[:-1] if b"\nid: " in event]
            assert again.headers.get("last-event-id") == (had[-1].rpartition(b"id: ")[2].decode() if had else None)
            assert again.body == first.body


@pytest.mark.parametrize("cut", [0, 1, 60, 100, 300])
def test_the_blocking_client_resumes_too(cut: int) -> None:
    text, server = read(stream(cut=cut), resuming())
    assert text == TEXT
    assert len(server.received) == 2


def one_word(request: object) -> Answer:
    """Gives one word, then breaks."""
    start = int(request.headers.get("last-event-id", "0"))  # type: ignore[attr-defined]
    body = events(start)
    return stream(body[: body.index(b"\n\n", body.index(b"id: ")) + 2] if start < len(WORDS) else body, cut=10**6)


def test_a_connection_that_breaks_after_every_word() -> None:
    text, server = read(one_word)
    assert text == TEXT
    assert len(server.received) == len(WORDS) + 1


def test_a_stream_that_ends_properly_but_without_its_mark_is_broken() -> None:
    text, server = read(stream(events(done=False)), resuming())
    assert text == TEXT
    assert server.received[1].headers["last-event-id"] == str(len(WORDS))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_refusals_on_the_way_back_are_waited_out(status: int) -> None:
    text, server = read(stream(cut=300), *[refusal(status)] * 5, resuming(), max_retries=0)
    assert text == TEXT
    assert len(server.received) == 7
    assert len({request.headers.get("last-event-id") for request in server.received[1:]}) == 1


def test_another_server_goes_on() -> None:
    with threaded(stream(cut=300)) as first, threaded(resuming()) as other:
        with sdk.Client([first.url, other.url]) as client:
            assert "".join(words(client)) == TEXT
        assert (len(first.received), len(other.received)) == (1, 1)


def test_servers_that_are_gone_are_passed_over() -> None:
    with threaded() as gone:
        unused = gone.url
    with threaded(resuming()) as other, threaded(stream(cut=300)) as first:
        client = sdk.Client([first.url, unused, unused + "/v1", other.url])
        assert "".join(words(client)) == TEXT


def test_an_end_with_a_drain_goes_on_elsewhere() -> None:
    error = b'data: {"error": {"message": "shutting down", "code": "unavailable"}}\n\n'
    begun = events(done=False)
    begun = begun[: begun.index(b"data", begun.index(b"id: 3"))] + b"data: " + chunk("not to be shown yet") + b"\n\n"
    with threaded(stream(begun + error)) as first, threaded(resuming()) as other:
        with sdk.Client([first.url, other.url]) as client:
            assert "".join(words(client)) == TEXT
        assert other.received[0].headers["last-event-id"] == "3"


def test_an_error_inside_a_stream_comes_after_what_was_said() -> None:
    body = b"data: " + chunk("a") + b'\n\ndata: {"error": {"message": "NaN", "code": "numerical_fault"}}\n\n'
    with threaded(stream(body)) as server, sdk.Client(server.url) as client:
        found = iter(client.completions.create(model="m", prompt="p", stream=True))
        assert next(found).choices[0].delta.content == "a"
        with pytest.raises(sdk.APIError, match="NaN") as caught:
            next(found)
    assert caught.value.code == "numerical_fault"
    assert len(server.received) == 1


DIVERGED = {"error": {"message": "not the same", "code": "resume_diverged", "type": "server_error"}}


@pytest.mark.parametrize(
    "answer", [refusal(409, "resume_diverged"), stream(b"data: " + json.dumps(DIVERGED).encode() + b"\n\n")]
)
def test_a_divergence_is_told(answer: Answer) -> None:
    with pytest.raises(sdk.ResumeDivergedError) as caught:
        read(stream(cut=300), answer)
    assert caught.value.code == "resume_diverged"


def test_an_id_that_is_refused_is_told() -> None:
    with pytest.raises(sdk.BadRequestError) as caught:
        read(stream(cut=300), refusal(400, "invalid_resume_token"))
    assert caught.value.code == "invalid_resume_token"


def test_the_time_to_resume_is_bounded() -> None:
    with pytest.raises(sdk.StreamInterruptedError, match="in time") as caught:
        read(stream(cut=300), refusal(503), resume_seconds=0.05)
    assert isinstance(caught.value.__cause__, sdk.InternalServerError)


def test_a_server_that_breaks_every_stream_at_once_is_given_up() -> None:
    with pytest.raises(sdk.StreamInterruptedError):
        read(stream(cut=300), stream(cut=0), resume_seconds=0.05)


def test_resuming_can_be_turned_off() -> None:
    with pytest.raises(sdk.StreamInterruptedError, match="cannot be resumed"):
        read(stream(cut=300), resuming(), resume_seconds=0)


def test_a_stream_without_ids_is_shown_at_once_and_cannot_be_resumed() -> None:
    with threaded(stream(events(ids=False), resumable=False, cut=150)) as server, sdk.Client(server.url) as client:
        found = iter(client.completions.create(model="m", prompt="p", stream=True))
        assert next(found).choices[0].delta.content == WORDS[0]
        with pytest.raises(sdk.StreamInterruptedError):
            list(found)
    assert len(server.received) == 1


def test_a_server_that_does_not_know_ids_is_not_believed() -> None:
    with pytest.raises(sdk.StreamInterruptedError, match="the server cannot resume"):
        read(stream(cut=300), stream(events(ids=False), resumable=False))


def test_what_nobody_has_seen_is_asked_for_again() -> None:
    text, server = read(stream(events(ids=False), resumable=False, cut=10), stream(events(ids=False), resumable=False))
    assert text == TEXT
    assert "last-event-id" not in server.received[1].headers


def test_an_event_that_is_no_json() -> None:
    with pytest.raises(sdk.APIError, match="no JSON"):
        read(stream(b"data: {\n\n"))


def test_a_silent_stream_counts_as_broken() -> None:
    text, server = read(stream(cut=300, hold=True), resuming(), idle_seconds=0.05)
    assert text == TEXT
    assert len(server.received) == 2


def test_leaving_the_loop_closes_the_connection() -> None:
    with threaded(stream(cut=300, hold=True)) as server, sdk.Client(server.url) as client:
        for _ in client.completions.create(model="m", prompt="p", stream=True):
            break
        assert server.left.wait(10)
        assert len(server.received) == 1


async def test_leaving_the_asynchronous_loop_closes_the_connection() -> None:
    async with running(stream(cut=300, hold=True)) as server, sdk.AsyncClient(server.url) as client:
        async for _ in await client.completions.create(model="m", prompt="p", stream=True):
            break
        assert await asyncio.to_thread(server.left.wait, 10)
        assert len(server.received) == 1


async def test_a_cancelled_reader_closes_the_connection() -> None:
    async with running(stream(cut=300, hold=True)) as server, sdk.AsyncClient(server.url) as client:
        begun = asyncio.Event()

        async def reader() -> None:
            async for _ in await client.completions.create(model="m", prompt="p", stream=True):
                begun.set()

        task = asyncio.create_task(reader())
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert await asyncio.to_thread(server.left.wait, 10)
        assert len(server.received) == 1


def test_a_finished_stream_leaves_its_connection_for_the_next() -> None:
    with threaded(stream(), stream()) as server, httpx.Client() as http:
        opened: list[object] = []
        with sdk.Client(server.url, http_client=http) as client:
            for _ in range(2):
                found = client.completions.create(model="m", prompt="p", stream=True)
                list(found)
                opened.append(found.response.extensions["network_stream"].get_extra_info("client_addr"))
    assert opened[0] == opened[1]


def test_the_raw_response_of_a_stream() -> None:
    with threaded(stream()) as server, sdk.Client(server.url) as client:
        raw = client.completions.with_raw_response.create(model="m", prompt="p", stream=True)
        assert raw.headers["x-resumable"] == "true"
        assert "".join(event.choices[0].delta.content for event in raw.parse()) == TEXT
