"""Medians, quartiles, ratios and targets on numbers worked out by hand."""

from __future__ import annotations

import pytest
from bench.peers.catalogue import PEERS
from bench.peers.ratios import TARGETS, holds, own_targets, peer_targets, ratios, summary


def test_summary_has_median_and_quartiles() -> None:
    rows = [{"ttft_ms": value} for value in (10.0, 50.0, 30.0, 20.0, 40.0)]
    assert summary(rows) == {"ttft_ms": {"median": 30.0, "lower_quartile": 20.0, "upper_quartile": 40.0}}


def test_one_row_is_its_own_summary() -> None:
    assert summary([{"pss_mb": 7.0}]) == {"pss_mb": {"median": 7.0, "lower_quartile": 7.0, "upper_quartile": 7.0}}


def test_ratio_of_medians_and_median_of_ratios_differ() -> None:
    ours = [{"x": 10.0}, {"x": 20.0}, {"x": 90.0}]
    theirs = [{"x": 10.0}, {"x": 40.0}, {"x": 30.0}]
    assert ratios(ours, theirs) == {"x": {"of_medians": pytest.approx(20 / 30), "paired_median": 1.0}}


def test_pairs_end_where_a_peer_failed() -> None:
    found = ratios([{"x": 4.0}, {"x": 100.0}], [{"x": 2.0}])
    assert found["x"]["paired_median"] == 2.0


@pytest.mark.parametrize(
    ("metric", "value", "held"),
    [("tokens_per_s_8", 3.0, True), ("tokens_per_s_8", 2.99, False), ("ttft_ms", 0.6, True), ("ttft_ms", 0.61, False)],
)
def test_rates_must_reach_a_bound_and_times_stay_below(metric: str, value: float, held: bool) -> None:
    bound = 3.0 if metric == "tokens_per_s_8" else 0.6
    assert holds(metric, value, bound) is held


def test_every_target_of_a_family_is_judged() -> None:
    reached = {"decode_tokens_per_s": 2.0, "ttft_ms": 0.2, "tokens_per_s_8": 2.0, "tokens_per_s_32": 4.0}
    found = {metric: {"of_medians": value} for metric, value in reached.items()}
    judged = {entry["metric"]: entry["met"] for entry in peer_targets("llama.cpp Q4_1", found)}
    assert judged == {"decode_tokens_per_s": True, "ttft_ms": True, "tokens_per_s_8": False, "tokens_per_s_32": True}


def test_own_targets_are_amounts() -> None:
    judged = {
        entry["metric"]: entry["met"] for entry in own_targets({"warm_ttft_ms": 51, "pss_mb": 600, "ready_s": 3.0})
    }
    assert judged == {"warm_ttft_ms": False, "pss_mb": True, "ready_s": True}


def test_every_peer_has_targets() -> None:
    assert {peer.family for peer in PEERS.values()} == set(TARGETS)
