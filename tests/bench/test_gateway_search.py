"""The bench of the data path without a server: its search for a rate, its reading of histograms, its sums."""

from __future__ import annotations

from typing import Any

import pytest
from bench.gateway import __main__ as command
from bench.gateway import measure, prometheus, systems, usage
from bench.gateway.pump import events
from bench.gateway.search import RESOLUTION, Search, confirm, sustained


def found(rate: float, capacity: float) -> dict[str, Any]:
    """What a trial finds of a system that manages `capacity`."""
    return {"errors": 0, "kept_up": min(1.0, capacity / rate), "ttft_ms": {"p99": 10.0}}


@pytest.mark.parametrize("capacity", [3.0, 90.0, 100.0, 700.0])
def test_the_search_ends_just_below_the_capacity(capacity: float) -> None:
    search = Search(lambda rate: found(rate, capacity), 1000.0)
    best = search.run(100.0)
    assert capacity / 1.1 <= best <= capacity * 1.02
    assert search.worst / best <= RESOLUTION


def test_a_search_that_never_succeeds_ends_with_nothing() -> None:
    search = Search(lambda rate: {**found(rate, 1e9), "errors": 1}, 1000.0)
    assert search.run(100.0) == 0
    assert not any(trial["kept"] for trial in search.trials)


@pytest.mark.parametrize("bad", [{"errors": 1}, {"kept_up": 0.98}, {"ttft_ms": {"p99": 1001.0}}])
def test_errors_lag_and_slow_first_tokens_spoil_a_trial(bad: dict[str, Any]) -> None:
    good = found(1.0, 1.0)
    assert sustained(good, 1000.0)
    assert not sustained({**good, **bad}, 1000.0)


def test_a_rate_that_does_not_hold_for_long_is_lowered() -> None:
    search = Search(lambda rate: found(rate, 100.0), 1000.0)
    search.run(100.0)
    rate, trial = confirm(search, lambda rate: found(rate, 90.0))
    assert 80 <= rate <= 91
    assert trial["kept_up"] >= 0.99


def test_a_rate_that_never_holds_is_none() -> None:
    search = Search(lambda rate: found(rate, 100.0), 1000.0)
    search.run(100.0)
    assert confirm(search, lambda rate: found(rate, 10.0))[0] == 0


PAGE = """# TYPE inference_stack_added_latency_seconds histogram
inference_stack_added_latency_seconds_bucket{le="0.001",model="a"} 5.0
inference_stack_added_latency_seconds_bucket{le="0.002",model="a"} 9.0
inference_stack_added_latency_seconds_bucket{le="+Inf",model="a"} 10.0
inference_stack_added_latency_seconds_bucket{le="0.001",model="b"} 5.0
inference_stack_added_latency_seconds_bucket{le="0.002",model="b"} 5.0
inference_stack_added_latency_seconds_bucket{le="+Inf",model="b"} 5.0
inference_stack_added_latency_seconds_count{model="a"} 10.0
other_bucket{le="1.0"} 3.0
"""


def test_a_histogram_is_summed_over_its_labels() -> None:
    assert prometheus.buckets(PAGE, prometheus.ADDED) == {0.001: 10.0, 0.002: 14.0, float("inf"): 15.0}


def test_a_histogram_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="tells no missing"):
        prometheus.buckets(PAGE, "missing")


def test_quantiles_lie_on_lines_inside_buckets() -> None:
    cumulative = {0.001: 10.0, 0.002: 14.0, float("inf"): 15.0}
    assert prometheus.quantile(cumulative, 0.5) == pytest.approx(0.00075)
    assert prometheus.quantile(cumulative, 0.8) == pytest.approx(0.0015)
    assert prometheus.quantile(cumulative, 0.99) == float("inf")


def test_a_quantile_of_nothing_is_zero() -> None:
    assert prometheus.quantile({0.001: 0.0, float("inf"): 0.0}, 0.5) == 0


def test_two_readings_make_a_difference() -> None:
    assert prometheus.difference({1.0: 2.0}, {1.0: 5.0, 2.0: 7.0}) == {1.0: 3.0, 2.0: 7.0}


def test_a_line_is_fitted_in_megabytes_per_hundred_thousand() -> None:
    line = measure.fit([(0, 100.0), (100_000, 101.5), (200_000, 103.0)])
    assert line["mb_per_100k"] == pytest.approx(1.5)
    assert line["base_mb"] == pytest.approx(100.0)


def test_processor_time_is_told_by_role_and_by_what_others_used() -> None:
    before = usage.Reading({"gateway": {1: 1.0, 2: 1.0}}, 10.0)
    after = usage.Reading({"gateway": {1: 3.0, 2: 5.0}, "worker": {3: 1.0}}, 20.0)
    rows = usage.between(before, after, wall=5.0, requests=1000, load_cpu=0.5)
    assert rows["gateway"] == {"processes": 2, "cpu_s": 6.0, "ms_per_request": 6.0, "busiest_core_share": 0.8}
    assert rows["others"] == {"cpu_s": 2.5}


def test_medians_are_also_told_per_process_and_against_others() -> None:
    rows = {"apart-2": [400.0, 500.0, 300.0], "litellm": [20.0, 25.0, 30.0]}
    whole = command.summary({name: {"rounds": [{"rate": rate} for rate in rates]} for name, rates in rows.items()})
    assert whole["sustained_per_s"] == {"apart-2": 400.0, "litellm": 25.0}
    assert whole["ratios"]["apart-2"]["litellm"] == {"whole": 16.0, "per_process": 8.0}


@pytest.mark.parametrize("name", ["nothing", "litellm-2", "serve-3", "pump-burst-2x2"])
def test_an_unknown_system_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="no system is called"):
        systems.find(name)


def test_a_name_tells_processes_and_nodes() -> None:
    assert systems.find("apart-2x6") == (systems.SYSTEMS["apart"], "2x6")
    assert [command.processes(name) for name in ("serve", "apart-2x6", "pump-burst-3")] == [1, 2, 3]


def test_the_pump_makes_one_event_a_token() -> None:
    made = events(32)
    assert len(made) == 33
    assert b"".join(made).count(b'"delta":{"content":') == 32
    assert made[-1].endswith(b"data: [DONE]\n\n")
