"""Server-sent events, however they are written and cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_stack_client.sse import Event, Parser

STREAM = (
    "\ufeff: hello\n\ndata: Grüße 你好 🙂\nid: 1\n\nevent: odd\ndata:two\ndata: lines\n\n:\nid: 2\nretry: 5\n\ndata\n\n"
    "id\ndata:  x\n\n"
)
EVENTS = [
    Event("Grüße 你好 🙂", "1"),
    Event("two\nlines", None, "odd"),
    Event("", None),
    Event(" x", ""),
]


def parsed(*parts: bytes) -> list[Event]:
    parser = Parser()
    return [event for part in parts for event in parser.feed(part)]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_every_line_ending_at_every_cut(end: str) -> None:
    data = STREAM.replace("\n", end).encode()
    for at in range(len(data) + 1):
        assert parsed(data[:at], data[at:]) == EVENTS
    assert parsed(*(bytes([byte]) for byte in data)) == EVENTS


@given(st.lists(st.sampled_from(["\n", "\r\n"]), min_size=20), st.lists(st.integers(0, 200)))
def test_mixed_endings_and_many_cuts(ends: list[str], cuts: list[int]) -> None:
    lines = STREAM.split("\n")[:-1]
    data = "".join(line + end for line, end in zip(lines, ends, strict=False)).encode()
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assert parsed(*(data[start:stop] for start, stop in pairwise(places))) == EVENTS


def test_an_event_that_was_not_ended_does_not_count() -> None:
    assert parsed(b"data: a\n\ndata: b\nid: 2\n") == [Event("a")]


def test_an_id_with_a_null_is_ignored() -> None:
    assert parsed(b"id: a\0b\ndata: x\n\n") == [Event("x")]
