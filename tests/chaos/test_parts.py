"""What chaos is made of: requests with one right answer, records of gaps, excuses, and a proxy that does what it is told."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from inference_stack.cli.bench.chaos_account import account, excused, promises
from inference_stack.cli.bench.chaos_proxy import Proxy
from inference_stack.cli.bench.chaos_requests import KINDS, Case, Transcript, catalogue, stopped
from inference_stack.cli.bench.chaos_spec import Fault, Plan, Record

CASE = Case(kind="greedy", path="/chat/completions", body={"stream": True})


def chunk(text: str, tokens: list[int], **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "token_ids": tokens, "finish_reason": None}
    return {"id": "chatcmpl-1", "created": 5, "model": "m", "choices": [choice | fields]}


def transcript(*chunks: dict[str, Any]) -> Transcript:
    found = Transcript()
    for one in chunks:
        found.take(one)
    return found


def record(begin: float, end: float, **fields: Any) -> Record:
    given = {"number": 0, "case": CASE, "resuming": False, "gateway": "g1", "times": [begin]}
    return Record(begin=begin, end=end, **(given | fields))


# -- the same bytes


def test_chunk_borders_do_not_matter() -> None:
    whole, parts = transcript(chunk("ab", [1, 2])), transcript(chunk("a", [1]), chunk("b", [2]))
    assert parts.difference(whole) == ""


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (chunk("ac", [1, 2]), "text"),
        (chunk("ab", [1, 3]), "tokens"),
        (chunk("ab", [1, 2], finish_reason="stop"), "finish"),
        (chunk("ab", [1, 2], logprobs={"content": [{"logprob": -1}]}), "logprobs"),
        (chunk("ab", [1, 2], index=1), "choices"),
        (chunk("ab", [1, 2]) | {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}, "usage"),
    ],
)
def test_every_difference_is_seen(other: dict[str, Any], named: str) -> None:
    assert named in transcript(other).difference(transcript(chunk("ab", [1, 2])))


def test_an_identity_that_changes_inside_a_stream_is_seen() -> None:
    found = transcript(chunk("a", [1]), chunk("b", [2]) | {"created": 6})
    assert "became" in found.difference(transcript(chunk("ab", [1, 2])))


def test_requests_are_the_same_for_the_same_seed_and_of_every_kind() -> None:
    first, again = (catalogue("m", 22, 4, 9, random.Random("x")) for _ in range(2))
    assert first == again
    assert {case.kind for case in first} == set(KINDS)
    assert all("seed" in case.body for case in first)


def test_a_stop_string_comes_from_the_answer_itself() -> None:
    case = stopped(CASE, transcript(chunk("0123456789", [1])))
    assert case.body["stop"] == ["56789"]


# -- what clients saw


def test_a_gap_counts_where_it_overlaps_the_fault() -> None:
    seen = record(0.0, 9.0, times=[0.0, 1.0, 4.0, 4.5])
    assert seen.gap(1.2, 3.0) == 3.0
    assert seen.gap(4.2, 4.4) == 0.5
    assert seen.gap(4.6, 6.0) == 4.5
    assert seen.gap(10.0, 11.0) == 0.0


def test_a_silence_from_before_is_not_the_faults() -> None:
    assert record(0.0, 9.0, times=[0.0, 1.0, 4.0]).gap(2.0, 3.0) == 0.0


@pytest.mark.parametrize(
    ("kind", "begin", "end", "expected"),
    [
        ("gateway/kill", 0.0, 1.0, False),  # it had ended before
        ("gateway/kill", 0.0, 3.0, True),
        ("gateway/kill", 4.0, 4.5, True),  # it was not back yet
        ("gateway/kill", 6.0, 7.0, False),
        ("gateway/restart", 0.0, 3.0, False),  # what was begun must be ended
        ("gateway/restart", 3.0, 4.0, True),
        ("gateway/full disk", 0.0, 9.0, False),
        ("node/kill", 0.0, 9.0, False),
    ],
)
def test_stock_clients_are_excused_with_their_gateway_alone(
    kind: str, begin: float, end: float, expected: bool
) -> None:
    fault = Fault(number=0, kind=kind, victim="g1", begin=2.0, end=3.0, again=5.0)
    assert excused(record(begin, end), [fault], ("gateway/full disk",)) is expected
    assert not excused(record(begin, end, gateway="g2"), [fault], ())


def test_the_account_names_what_went_wrong() -> None:
    fine, lost = record(0.0, 3.0, number=1), record(0.0, 2.5, number=2, resuming=True, error="StreamInterruptedError")
    fault = Fault(number=0, kind="worker/kill", victim="n1's worker", begin=2.0, end=2.1, hit=[fine, lost])
    counts = {"moves": 2, "mismatches": 0, "resumes": 0}
    result = account(Plan(), [fine, lost], [fault], counts, 3.0, 0, ())
    assert [trouble["request"] for trouble in result["troubles"]] == [2]
    assert result["troubles"][0]["faults"] == [0]
    assert result["promises"]["no resuming client failed"] is False
    assert result["promises"]["no wrong bytes"] is True


@pytest.mark.parametrize(
    ("field", "value"), [("failed_resuming", 1), ("failed_stock", 1), ("wrong_bytes", 1), ("unended", 1)]
)
def test_each_failure_breaks_one_promise(field: str, value: int) -> None:
    fine = {"failed_resuming": 0, "failed_stock": 0, "wrong_bytes": 0, "unended": 0}
    assert all(promises(fine, {}, 100.0).values())
    assert list(promises(fine | {field: value}, {}, 100.0).values()).count(False) == 1


def test_slow_recovery_and_other_numerics_break_promises() -> None:
    fine = {"failed_resuming": 0, "failed_stock": 0, "wrong_bytes": 0, "unended": 0}
    late = {"node/stop": {"gap_s": {"p50": 1.0, "p99": 2.1, "max": 2.2}}}
    assert list(promises(fine, late, 100.0).values()).count(False) == 1
    assert list(promises(fine, {}, 99.0).values()).count(False) == 1


# -- the proxy


class Pair:
    """A client that reaches an echo-less server through a wire."""

    def __init__(self, proxy: Proxy, server: socket.socket) -> None:
        self.wire = proxy.wire(server.getsockname()[1])
        self.near = socket.create_connection(("127.0.0.1", self.wire.port), timeout=10)
        self.far, _ = server.accept()
        self.far.settimeout(10)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Proxy() as proxy, socket.create_server(("127.0.0.1", 0)) as server:
        found = Pair(proxy, server)
        yield found
        found.near.close()
        found.far.close()


def silent(sock: socket.socket) -> bool:
    """Whether nothing comes for a moment."""
    before = sock.gettimeout()
    sock.settimeout(0.2)
    try:
        return not sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(before)


def test_a_wire_carries_both_ways(pair: Pair) -> None:
    pair.near.sendall(b"up")
    assert pair.far.recv(9) == b"up"
    pair.far.sendall(b"down")
    assert pair.near.recv(9) == b"down"


def test_a_wire_that_holds_one_way_lets_the_other_through(pair: Pair) -> None:
    pair.wire.hold(up=True, down=False)
    pair.near.sendall(b"up")
    pair.far.sendall(b"down")
    assert pair.near.recv(9) == b"down"
    assert silent(pair.far)
    pair.wire.mend()
    assert pair.far.recv(9) == b"up"


def test_a_cut_wire_resets_both_sides(pair: Pair) -> None:
    pair.near.sendall(b"x")
    assert pair.far.recv(9) == b"x"
    pair.wire.cut()
    for sock in (pair.near, pair.far):
        with pytest.raises(ConnectionResetError):
            sock.recv(9)
