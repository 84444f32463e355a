"""A client that loses its connection: events as they came, what it may keep of them, and what an answer adds up to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from tests.gateway.house import House, client, make_house

SECRET = b"0123456789abcdef0123456789abcdef"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@dataclass(frozen=True)
class Event:
    """One event of a stream; `data` is the end mark's text or parsed JSON."""

    data: Any
    id: str | None


def sharing(**config: Any) -> House:
    """A gateway that shares its secret with all others made here."""
    return make_house(SECRET, **config)


def parsed(text: str) -> list[Event]:
    """The events of a stream. Comments are skipped."""
    found = []
    for block in text.split("\n\n"):
        lines = [line.partition(": ") for line in block.splitlines() if not line.startswith(":")]
        fields = {name: value for name, _, value in lines}
        if "data" in fields:
            data = fields["data"] if fields["data"] == "[DONE]" else json.loads(fields["data"])
            found.append(Event(data, fields.get("id")))
    return found


async def post(house: House, path: str, body: bytes, last_id: str | None = None, **headers: str) -> httpx.Response:
    """The whole answer to a body's exact bytes."""
    sent = {"content-type": "application/json", **headers}
    if last_id is not None:
        sent["last-event-id"] = last_id
    async with client(house) as http:
        return await http.post(path, content=body, headers=sent)


async def streamed(house: House, path: str, body: bytes, last_id: str | None = None, **headers: str) -> list[Event]:
    """The events of a stream."""
    response = await post(house, path, body, last_id, **headers)
    assert response.status_code == 200, response.text
    assert response.headers["x-resumable"] == "true"
    return parsed(response.text)


def kept(events: Sequence[Event]) -> list[Event]:
    """What counts as received when the connection broke behind these: everything up to the last id."""
    last = max((index for index, event in enumerate(events) if event.id is not None), default=-1)
    return list(events[: last + 1])


def encoded(body: dict[str, Any]) -> bytes:
    return json.dumps({**body, "stream": True}).encode()


@dataclass
class Told:
    """What a choice's events add up to."""

    text: str
    logprobs: list[Any]
    token_ids: list[int]
    prompt_token_ids: list[Any]
    finish: list[str]
    roles: int


def told(events: Sequence[Event], index: int) -> Told:
    """One choice of a stream. Columns of text completions are joined name by name."""
    found = Told("", [], [], [], [], 0)
    for event in events:
        choices = event.data["choices"] if isinstance(event.data, dict) else ()
        for choice in choices:
            if choice["index"] != index:
                continue
            delta = choice.get("delta", {})
            found.text += delta.get("content", choice.get("text", "")) or ""
            found.roles += "role" in delta
            found.token_ids += choice.get("token_ids", ())
            found.prompt_token_ids += [choice["prompt_token_ids"]] if "prompt_token_ids" in choice else []
            found.logprobs += _entries(choice["logprobs"])
            found.finish += [choice["finish_reason"]] if choice["finish_reason"] else []
    return found


def _entries(logprobs: Any) -> list[Any]:
    if logprobs is None:
        return []
    return logprobs["content"] if "content" in logprobs else list(zip(*logprobs.values(), strict=True))


def constants(events: Sequence[Event]) -> set[tuple[Any, ...]]:
    """What every event says of the answer itself."""
    names = ("id", "created", "model", "system_fingerprint", "object")
    return {tuple(event.data[name] for name in names) for event in events if event.data != "[DONE]"}


def usages(events: Sequence[Event]) -> list[Any]:
    """The usage, however often it was told."""
    return [event.data["usage"] for event in events if event.data != "[DONE]" and event.data.get("usage")]


def assert_same(found: Sequence[Event], undisturbed: Sequence[Event], choices: int) -> None:
    """Both add up to the same answer, and end once."""
    assert [told(found, index) for index in range(choices)] == [told(undisturbed, index) for index in range(choices)]
    assert usages(found) == usages(undisturbed)
    assert len(constants(found)) == 1
    ends = [index for index, event in enumerate(found) if event.data == "[DONE]"]
    assert ends == [len(found) - 1]
