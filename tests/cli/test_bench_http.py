import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_stack.cli.bench.http import Dechunker, ProtocolError, Response, call, request

PIECES = [b"hello", b"\r\n0\r\n\r\n", b"x" * 40]
FRAMED = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(piece), piece) for piece in PIECES) + b"0\r\n\r\n"


@given(st.lists(st.integers(0, len(FRAMED)), max_size=12).map(sorted))
def test_chunks_come_apart_however_they_are_split(cuts: list[int]) -> None:
    frames, edges = Dechunker(), [0, *cuts, len(FRAMED)]
    body = b"".join(frames.feed(FRAMED[start:end]) for start, end in itertools.pairwise(edges))
    assert body == b"".join(PIECES)
    assert frames.finished


def test_a_bad_chunk_size_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="not a chunk size"):
        Dechunker().feed(b"zz\r\n")


def answer(headers: dict[str, str], data: bytes) -> Response:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return Response(200, headers, reader)


async def test_a_body_of_known_length_ends_there() -> None:
    assert await answer({"content-length": "3"}, b"abcdef").body() == b"abc"


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    assert await answer({}, b"abcdef").body() == b"abcdef"


@pytest.mark.parametrize("headers", [{"content-length": "9"}, {"transfer-encoding": "chunked"}])
async def test_a_body_cut_short_is_a_protocol_error(headers: dict[str, str]) -> None:
    with pytest.raises(ProtocolError, match="inside the body"):
        await answer(headers, b"5\r\nabc").body()


async def test_a_call_sends_and_takes_json(fake: Any) -> None:
    status, value = await call("POST", fake.url, "/tokenize", {"prompt": "a b"}, api_key="secret")
    assert (status, value["count"]) == (200, 2)
    assert fake.asked == [("/tokenize", {"prompt": "a b"})]


async def test_status_and_body_of_a_refusal_are_kept(fake: Any) -> None:
    async with request("GET", fake.url, "/nowhere") as response:
        assert response.status == 404
        assert await response.body() == b"{}"
