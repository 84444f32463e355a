"""The report says what the result says, failures included, and replaces only its own part of a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench.peers.catalogue import OURS, PEERS
from bench.peers.ratios import summary
from bench.peers.report import BEGIN, COLUMNS, END, markdown, speedups, splice, write
from bench.peers.run import Seat, compare, order

ROW = {
    "decode_tokens_per_s": 100.0,
    "ttft_ms": 500.0,
    "warm_ttft_ms": 40.0,
    "tokens_per_s_8": 300.0,
    "tokens_per_s_32": 400.0,
    "pss_mb": 600.0,
    "peak_rss_mb": 650.0,
}


@pytest.fixture
def seats() -> list[Seat]:
    ours = Seat(contender=OURS, rows=[ROW, ROW], facts={"ready_s": 2.0})
    slower = {name: value / 2 if "tokens" in name else value * 4 for name, value in ROW.items()}
    failed = Seat(contender=PEERS["vllm"], error="RuntimeError: not installed")
    return [ours, Seat(contender=PEERS["llama-q4_0"], rows=[slower, slower]), failed]


@pytest.fixture
def result(seats: list[Seat]) -> dict[str, Any]:
    machine = {"date": "2026-01-02T03:04:05+00:00", "cpu": "A processor", "cores": 2, "flags": ["avx2"]}
    made = {
        "machine": {**machine, "load_average": [0.1, 0.2, 0.3], "commit": "abc"},
        "model": "m.gguf",
        "quick": False,
        "repeats": 2,
        "servers": {seat.contender.name: seat.as_dict() for seat in seats},
        **compare(seats),
    }
    return dict(json.loads(json.dumps(made)))


def test_a_failed_peer_stays_in_the_result(result: dict[str, Any]) -> None:
    assert result["servers"]["vllm"]["error"] == "RuntimeError: not installed"
    assert set(result["ratios"]) == {"llama-q4_0"}
    text = markdown(result)
    assert "vLLM CPU, fp32 (failed)" in text
    assert "- vLLM CPU, fp32: RuntimeError: not installed" in text


def test_without_ours_there_is_nothing_to_compare(seats: list[Seat]) -> None:
    assert compare(seats[1:]) == {}


def test_targets_are_judged_by_family(result: dict[str, Any]) -> None:
    judged = {entry["metric"]: (entry["ratio"], entry["met"]) for entry in result["targets"]["llama-q4_0"]}
    assert judged["decode_tokens_per_s"] == (2.0, True)
    assert judged["ttft_ms"] == (0.25, True)
    assert [entry["met"] for entry in result["targets"]["ours"]] == [True, True, True]


def test_speedups_turn_times_around(result: dict[str, Any]) -> None:
    found = speedups(result)["llama-q4_0"]
    assert found == {metric: 2.0 if "tokens" in metric else 4.0 for metric in COLUMNS}


def test_tables_hold_medians_and_ratios(result: dict[str, Any]) -> None:
    text = markdown(result)
    assert "| Inference Stack | 100 (100) | 500 (500) | 40 (40) | 300 (300) | 400 (400) | 600 (600) |" in text
    assert "| 2.00 (2.00) | 0.25 (0.25) | 0.25 (0.25) | 2.00 (2.00) | 2.00 (2.00) | 0.25 (0.25) |" in text


def test_a_quick_run_says_so(result: dict[str, Any]) -> None:
    assert "quick run" not in markdown(result)
    assert "quick run" in markdown({**result, "quick": True})


def test_splice_replaces_what_is_between_the_marks() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = splice(page, "new")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert splice(once, "new") == once


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="has no"):
        splice("a page", "new")


def test_write_makes_tables_and_plots(result: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "benchmarks.md").write_text(f"# Page\n{BEGIN}\n{END}\n")
    write(result, tmp_path)
    assert "| llama-q4_0 |" in (tmp_path / "benchmarks.md").read_text()
    for name in ("peers-amounts.png", "peers-ratios.png"):
        assert (tmp_path / "images" / name).read_bytes().startswith(b"\x89PNG")


def test_another_one_begins_each_time(seats: list[Seat]) -> None:
    assert [order(seats, number)[0] for number in range(4)] == [*seats, seats[0]]
    assert all(len(order(seats, number)) == 3 for number in range(4))


def test_rows_that_were_measured_before_a_failure_are_kept() -> None:
    seat = Seat(contender=PEERS["vllm"], rows=[ROW])
    seat.fail(RuntimeError("gone"))
    assert seat.as_dict()["summary"] == summary([ROW])
    assert seat.as_dict()["error"] == "RuntimeError: gone"
