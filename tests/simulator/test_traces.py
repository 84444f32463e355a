"""Recorded traffic: the formats, windows, scale and speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_stack.core.errors import InferenceError
from inference_stack.simulator.api import Arrival
from inference_stack.simulator.tokens import prompt_tokens
from inference_stack.simulator.workloads import workload_from
from inference_stack.simulator.workloads.azure import azure_rows
from inference_stack.simulator.workloads.burstgpt import burstgpt_rows
from inference_stack.simulator.workloads.mooncake import mooncake_rows
from inference_stack.simulator.workloads.rows import Row
from inference_stack.simulator.workloads.trace import Trace

DATA = Path(__file__).parent.parent / "data" / "traces"
VOCAB = 30_000
AZURE_HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
# The columns as published; the rows are made up.
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
10,ChatGPT,100,20,120,Conversation log
12,GPT-4,50,0,50,API log
12.5,ChatGPT,0,0,0,API log
40,GPT-4,70,5,75,API log
"""


def arrivals(kind: str, **more: Any) -> list[Arrival]:
    names = {"azure": "azure_llm_2023_conv.csv", "mooncake": "mooncake_conversation.jsonl"}
    return list(workload_from({"kind": kind, "path": names[kind], **more}, base=DATA))


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# -- formats


def test_azure_times_are_exact_to_seven_digits() -> None:
    found = arrivals("azure")
    assert len(found) == 19
    assert [round(arrival.at, 7) for arrival in found[:3]] == [0.0, 4.314579, 4.5418770]
    assert [(arrival.prompt_tokens, arrival.output_tokens) for arrival in found[:2]] == [(374, 44), (396, 109)]


def test_azure_prompts_share_nothing() -> None:
    found = arrivals("azure")
    assert len({prompt_tokens(arrival.prompt, VOCAB)[:50] for arrival in found}) == len(found)


def test_mooncake_blocks_are_pieces_of_512_tokens_and_a_rest() -> None:
    first = arrivals("mooncake")[0]
    assert [piece.length for piece in first.prompt] == [512] * 13 + [6758 - 13 * 512]
    assert (first.at, first.prompt_tokens, first.output_tokens) == (0.0, 6758, 500)


def test_mooncake_prompts_share_exactly_the_blocks_of_equal_hash() -> None:
    rows, found = list(mooncake_rows(DATA / "mooncake_conversation.jsonl")), arrivals("mooncake")
    pieces: dict[int, tuple[int, ...]] = {}
    for row, arrival in zip(rows, found, strict=True):
        tokens = prompt_tokens(arrival.prompt, VOCAB)
        for index, block in enumerate(row.blocks[:-1]):
            here = tokens[512 * index : 512 * (index + 1)]
            assert pieces.setdefault(block, here) == here
    assert len(pieces) > 200 and len(set(pieces.values())) == len(pieces)


def test_burstgpt_failures_are_skipped_and_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "burst.csv", BURST)
    trace = workload_from({"kind": "burstgpt", "path": str(path)})
    assert isinstance(trace, Trace)
    found = [(arrival.at, arrival.prompt_tokens, arrival.output_tokens) for arrival in trace]
    assert found == [(0.0, 100, 20), (30.0, 70, 5)]
    assert trace.failed == 2
    assert len(list(trace)) == 2 and trace.failed == 2


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    text = "GeneratedTokens,Extra,TIMESTAMP,ContextTokens\r\n7,x,2023-11-16 18:15:46,30\r\n"
    assert list(azure_rows(written(tmp_path / "a.csv", text))) == [Row(2, 0.0, 30, 7)]


@pytest.mark.parametrize(
    ("read", "text", "line", "message"),
    [
        (azure_rows, "", 1, "no column TIMESTAMP"),
        (azure_rows, "TIMESTAMP,ContextTokens\n", 1, "no column GeneratedTokens"),
        (azure_rows, AZURE_HEAD + "2023-11-16 18:15:46.1,5,5\nyesterday,5,5\n", 3, "TIMESTAMP: expected a time"),
        (azure_rows, AZURE_HEAD + "2023-11-16 18:15:46.x,5,5\n", 2, "TIMESTAMP: expected a time"),
        (azure_rows, AZURE_HEAD + "2023-11-16 18:15:46.1,5\n", 2, "expected 3 columns, found 2"),
        (azure_rows, AZURE_HEAD + "2023-11-16 18:15:46.1,5,many\n", 2, "GeneratedTokens: expected a whole number"),
        (azure_rows, AZURE_HEAD + "\n2023-11-16 18:15:46.1,0,5\n", 3, "ContextTokens: expected at least 1"),
        (mooncake_rows, "{", 1, "no JSON"),
        (mooncake_rows, "\n[]\n", 2, "expected a JSON object"),
        (mooncake_rows, '{"timestamp": 0, "output_length": 1, "hash_ids": [1]}', 1, "input_length: expected"),
        (
            mooncake_rows,
            '{"timestamp": 0, "input_length": 513, "output_length": 1, "hash_ids": [1]}',
            1,
            "1 blocks of 512",
        ),
        (
            mooncake_rows,
            '{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": ["a"]}',
            1,
            "whole numbers",
        ),
        (
            mooncake_rows,
            '{"timestamp": "0", "input_length": 5, "output_length": 1, "hash_ids": [1]}',
            1,
            "timestamp: exp",
        ),
        (burstgpt_rows, BURST + "soon,GPT-4,5,5,10,API log\n", 6, "Timestamp: expected seconds"),
        (burstgpt_rows, BURST + "50,GPT-4,0,5,5,API log\n", 6, "Request tokens: expected at least 1"),
        (burstgpt_rows, BURST + "50,GPT-4,5,-5,0,API log\n", 6, "Response tokens: expected at least 0"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line(
    tmp_path: Path, read: Callable[[Path], Iterator[Row]], text: str, line: int, message: str
) -> None:
    path = written(tmp_path / "bad.trace", text)
    with pytest.raises(InferenceError) as caught:
        list(read(path))
    assert f"{path}, line {line}: " in str(caught.value) and message in str(caught.value)


def test_a_row_earlier_than_the_one_before_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "burst.csv", BURST + "39,GPT-4,5,5,10,API log\n")
    with pytest.raises(InferenceError, match=r"line 6: earlier than the row before"):
        list(Trace(path=path, read=burstgpt_rows))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.csv"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InferenceError, match="cannot be read"):
        list(Trace(path=path, read=azure_rows))


# -- windows, speed and scale


def made_up(count: int = 400, seed: int = 0) -> Callable[[Path], Iterator[Row]]:
    """A trace of rows with blocks in clusters of time, as real ones are."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.gamma(0.3, 2.0, count)).tolist()
    rows = [Row(line, 100.0 + at, 1000, 10, (line % 7, 1000 + line)) for line, at in enumerate(times)]
    return lambda _: iter(rows)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 6.0), st.floats(0.2, 5.0), st.integers(0, 1000))
def test_arrivals_are_numbered_in_order_and_alike_each_time(scale: float, speed: float, seed: int) -> None:
    trace = Trace(path=Path(), read=made_up(60), scale=scale, speed=speed, seed=seed)
    found = list(trace)
    assert [arrival.number for arrival in found] == list(range(len(found)))
    assert [arrival.at for arrival in found] == sorted(arrival.at for arrival in found)
    assert len({arrival.seed for arrival in found}) == len(found)
    assert found == list(trace)


@pytest.mark.parametrize("scale", [0.25, 1.0, 2.5, 20.0])
def test_scale_multiplies_the_requests_and_keeps_the_shape(scale: float) -> None:
    plain = list(Trace(path=Path(), read=made_up(4000)))
    scaled = list(Trace(path=Path(), read=made_up(4000), scale=scale))
    assert len(scaled) == pytest.approx(scale * len(plain), rel=0.1)
    edges = np.linspace(0.0, plain[-1].at, 9)
    shape = np.histogram([arrival.at for arrival in plain], edges)[0] * scale
    assert np.histogram([arrival.at for arrival in scaled], edges)[0] == pytest.approx(shape, rel=0.3)


def test_a_whole_scale_copies_each_row_so_often_within_a_second() -> None:
    rows = [Row(line, 10.0 * line, line + 1, 1) for line in range(20)]
    found = list(Trace(path=Path(), read=lambda _: iter(rows), scale=3.0))
    assert len(found) == 60
    for arrival in found:
        assert 0.0 <= arrival.at - 10.0 * (arrival.prompt_tokens - 1) < 1.0
    assert sum(arrival.at in {row.at for row in rows} for arrival in found) == 20


def test_copies_share_prefixes_as_the_trace_does_but_not_with_each_other() -> None:
    shared = [Row(line, 0.0, 1024, 1, (7, 100 + line)) for line in range(10)]
    found = list(Trace(path=Path(), read=lambda _: iter(shared), scale=4.0))
    firsts = [prompt_tokens(arrival.prompt[:1], VOCAB) for arrival in found]
    assert sorted(firsts.count(first) for first in set(firsts)) == [10] * 4
    assert len({arrival.prompt[1] for arrival in found}) == 40


def test_speed_warps_time_and_nothing_else() -> None:
    plain, fast = arrivals("azure"), arrivals("azure", speed=4)
    assert [arrival.at / 4 for arrival in plain] == [arrival.at for arrival in fast]
    assert [arrival.prompt for arrival in plain] == [arrival.prompt for arrival in fast]


def test_a_window_begins_the_run() -> None:
    plain, window = arrivals("azure"), arrivals("azure", start=5, duration=5)
    inside = [arrival for arrival in plain if 5 <= arrival.at < 10]
    assert 3 < len(inside) < 19
    assert [arrival.prompt_tokens for arrival in window] == [arrival.prompt_tokens for arrival in inside]
    assert [arrival.at for arrival in window] == [arrival.at - 5 for arrival in inside]


def test_a_limit_counts_requests_of_the_trace() -> None:
    assert len(arrivals("azure", limit=7)) == 7
    assert len(arrivals("azure", limit=7, scale=2)) == 14


def test_tenants_are_drawn_for_each_request() -> None:
    found = arrivals("mooncake", tenants=[{"name": "a"}, {"name": "b", "priority": "batch"}])
    assert {(arrival.tenant, arrival.priority) for arrival in found} == {("a", 0), ("b", -100)}


def test_traces_and_made_up_traffic_mix() -> None:
    parts = [{"kind": "azure", "path": "azure_llm_2023_conv.csv"}, {"kind": "constant", "rate": 2, "duration": 8}]
    found = list(workload_from({"kind": "mix", "parts": parts}, base=DATA))
    assert len(found) == 19 + 16
    assert [arrival.at for arrival in found] == sorted(arrival.at for arrival in found)
