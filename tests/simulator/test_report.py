"""The report's numbers, worked out by hand; reports that are kept and read back; reports compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_stack.core.errors import InferenceError
from inference_stack.simulator.api import Run
from inference_stack.simulator.fleet import Fleet
from inference_stack.simulator.report.compare import Row, compare, differences
from inference_stack.simulator.report.html import page, render
from inference_stack.simulator.report.numbers import fairness, histogram_numbers, summarise
from inference_stack.simulator.report.saved import read, report_of, write_json
from tests.simulator.parts import spec, traffic
from tests.simulator.reports import empty, hostile, outcome, run, six_requests


@pytest.fixture
def six() -> Run:
    return six_requests()


# -- numbers


def test_requests_are_counted_by_how_they_ended(six: Run) -> None:
    assert summarise(six)["requests"] == {"total": 6, "length": 2, "stop": 1, "error": 1, "refused": 1, "open": 1}


def test_ttft_is_of_requests_that_got_a_token(six: Run) -> None:
    # 0.5, 1, 1, 3
    assert summarise(six)["latency"]["ttft"] == pytest.approx(
        {"p50": 1.0, "p90": 2.4, "p95": 2.7, "p99": 2.94, "mean": 1.375}
    )


def test_e2e_is_of_requests_that_finished(six: Run) -> None:
    # 3, 4, 10: the failed one ended too, but not with an answer
    found = summarise(six)["latency"]["e2e"]
    assert (found["p50"], found["p90"], found["mean"]) == pytest.approx((4.0, 8.8, 17 / 3))


def test_queue_is_of_requests_that_got_a_token(six: Run) -> None:
    # 0, 0, 0.5, 2.5
    found = summarise(six)["latency"]["queue"]
    assert (found["p50"], found["mean"]) == pytest.approx((0.25, 0.75))


def test_longest_gap_is_of_requests_that_had_one(six: Run) -> None:
    # 1, 1.5, 6.5
    found = summarise(six)["latency"]["longest_gap"]
    assert (found["p50"], found["mean"]) == pytest.approx((1.5, 3.0))


def test_itl_percentiles_lie_inside_their_bin(six: Run) -> None:
    # two in 0..1, eight in 2..4: the fifth of ten is three eighths into the last bin
    found = summarise(six)["latency"]["itl"]
    assert (found["p50"], found["p90"], found["mean"]) == pytest.approx((2.75, 3.75, (2 * 0.5 + 8 * 3) / 10))


def test_a_percentile_at_the_end_of_a_bin_does_not_jump_over_empty_ones() -> None:
    found = histogram_numbers(np.array([0.0, 1.0, 2.0, 4.0]), np.array([5, 0, 5]))
    assert found["p50"] == 1.0


def test_goodput_counts_every_arrival(six: Run) -> None:
    assert summarise(six)["goodput"] == pytest.approx({"share": 1 / 6, "requests_per_second": 1 / 15})


def test_without_deadlines_what_finished_is_good() -> None:
    found = summarise(run([outcome(0, 0, 1, 9, finish="stop"), outcome(1, 0, finish="refused")]))
    assert found["goodput"]["share"] == 0.5


def test_a_deadline_met_exactly_is_met() -> None:
    found = summarise(run([outcome(0, 0, 2, 4, finish="stop", ttft_deadline=2.0, deadline=4.0)]))
    assert found["goodput"]["share"] == 1.0


def test_throughput_counts_what_was_emitted(six: Run) -> None:
    assert summarise(six)["throughput"] == pytest.approx(
        {"output_tokens_per_second": 10 / 15, "prompt_tokens_per_second": 500 / 15, "requests_per_second": 0.2}
    )


def test_prefix_hits_are_a_share_of_the_prompts_that_began(six: Run) -> None:
    assert summarise(six)["prefix_hit_rate"] == pytest.approx(200 / 500)


def test_utilisation_counts_the_part_of_the_last_interval_that_happened(six: Run) -> None:
    # two nodes for ten seconds, one for five
    assert summarise(six)["utilisation"] == pytest.approx(12 / 25)


def test_memory_has_a_mean_over_time_and_a_peak(six: Run) -> None:
    assert summarise(six)["kv"] == pytest.approx({"mean": (500 + 450) / (2000 + 500), "peak": 0.9})


def test_the_queue_has_a_mean_over_time_and_a_peak(six: Run) -> None:
    assert summarise(six)["queue"] == pytest.approx({"mean": (20 + 25) / 15, "peak": 5.0})


def test_preemptions_and_moves_are_totals(six: Run) -> None:
    found = summarise(six)
    assert (found["preemptions"], found["moves"]) == (7, 2)


def test_fairness_is_jains_index_and_the_service_gap(six: Run) -> None:
    # (100 + 300)² / (2 · (100² + 300²))
    assert summarise(six)["fairness"] == pytest.approx({"jain": 0.8, "service_gap": 200.0})


def test_nobody_served_has_no_index() -> None:
    assert fairness({"a": 0.0, "b": 0.0}) == {"jain": None, "service_gap": 0.0}


def test_tenants_have_numbers_of_their_own(six: Run) -> None:
    found = summarise(six)["tenants"]["b"]
    assert (found["requests"], found["finished"], found["goodput"], found["service"]) == (3, 1, 0.0, 300.0)
    assert found["ttft"]["mean"] == pytest.approx(0.75)


def test_a_tenant_that_was_served_without_an_outcome_is_listed() -> None:
    assert summarise(run([], service={"c": 5.0}))["tenants"]["c"]["requests"] == 0


def test_priorities_come_highest_first(six: Run) -> None:
    found = summarise(six)["priorities"]
    assert list(found) == ["100", "0"]
    assert found["100"]["e2e"]["p50"] == pytest.approx(10.0)


def test_cost_is_per_token_too(six: Run) -> None:
    assert summarise(six)["cost"] == {
        "node_hours": 0.5,
        "dollars": 9.0,
        "dollars_per_million_output_tokens": pytest.approx(9e5),
    }


def test_the_simulation_knows_its_own_speed(six: Run) -> None:
    assert summarise(six)["simulation"]["simulated_seconds_per_wall_second"] == pytest.approx(30.0)


def test_a_run_shorter_than_an_interval_has_throughput_but_no_utilisation() -> None:
    short = run([outcome(0, 0, 1, 2, finish="stop", output_tokens=8)], seconds=2.0, series=empty().series)
    found = summarise(short)
    assert (found["throughput"]["output_tokens_per_second"], found["utilisation"]) == (4.0, None)


def test_a_real_run_adds_up() -> None:
    workload = traffic(40, rate=2.0)
    found = summarise(Fleet(spec(workload)).run())
    asked = sum(arrival.output_tokens for arrival in workload)
    assert found["requests"]["length"] == 40
    assert found["throughput"]["output_tokens_per_second"] * found["seconds"] == pytest.approx(asked)
    assert 0 < found["utilisation"] <= 1
    assert 0 < found["latency"]["ttft"]["p50"] <= found["latency"]["e2e"]["p50"]


def test_an_empty_run_has_no_numbers_rather_than_wrong_ones() -> None:
    found = summarise(empty())
    assert found["latency"]["ttft"]["p50"] is None
    assert found["goodput"]["share"] is None
    assert found["utilisation"] is None
    assert "NaN" not in json.dumps(found, allow_nan=False)


moments = st.floats(0, 1e6, allow_nan=False)
fates = st.sampled_from(["length", "stop", "error", "refused", "open"])


@given(
    st.lists(st.tuples(moments, st.none() | moments, st.none() | moments, fates, st.sampled_from("abc")), max_size=20)
)
def test_any_run_is_strict_json(drawn: list[tuple[float, float | None, float | None, str, str]]) -> None:
    outcomes = [
        outcome(number, at, None if first is None else at + first, None if ended is None else at + ended,
                finish=fate, tenant=tenant)
        for number, (at, first, ended, fate, tenant) in enumerate(drawn)
    ]  # fmt: skip
    found = summarise(run(outcomes))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert sum(entry["requests"] for entry in found["tenants"].values()) == len(outcomes)


@given(st.lists(st.integers(0, 50), min_size=3, max_size=3).filter(any))
def test_histogram_percentiles_rise_and_stay_inside(counts: list[int]) -> None:
    edges = np.array([0.5, 1.0, 2.0, 4.0])
    found = histogram_numbers(edges, np.array(counts))
    rising = [found[name] for name in ("p50", "p90", "p95", "p99")]
    filled = np.flatnonzero(counts)
    assert rising == sorted(rising, key=float)
    assert all(value is not None and edges[filled[0]] <= value <= edges[filled[-1] + 1] for value in rising)


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1e12), min_size=1, max_size=8))
def test_jains_index_lies_between_one_nth_and_one(service: dict[str, float]) -> None:
    found = fairness(service)["jain"]
    assert found is None or 1 / len(service) - 1e-9 <= found <= 1 + 1e-9


# -- kept reports


def test_a_kept_report_reads_back_as_it_was(six: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    summary = summarise(six)
    write_json(six, summary, path)
    kept, made = read(path), report_of(six, summary)
    assert (kept.summary, kept.config, kept.events) == (summary, six.config, six.events)
    np.testing.assert_array_equal(kept.itl_counts, six.itl_counts)
    np.testing.assert_array_equal(kept.series.kv_used, six.series.kv_used)
    assert page(kept) == page(made)


def test_a_report_with_hostile_names_reads_back(tmp_path: Path) -> None:
    made = hostile()
    write_json(made, summarise(made), tmp_path / "x.json")
    assert page(read(tmp_path / "x.json")) == render(made, summarise(made))


def test_a_kept_report_does_not_grow_with_the_traffic(tmp_path: Path) -> None:
    sizes = []
    for count in (1000, 4000):
        made = run([outcome(number, 0, 1 + number / 7, 2 + number / 7, finish="stop") for number in range(count)])
        write_json(made, summarise(made), tmp_path / "x.json")
        sizes.append((tmp_path / "x.json").stat().st_size)
    assert sizes[1] < sizes[0] * 1.1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is not a simulation report"),
        ("[]", "is not a simulation report"),
        ("{}", "it has no 'format'"),
        ('{"format": "other", "version": 1}', "its format is 'other'"),
        ('{"format": "inference-stack simulation", "version": 99}', "newer"),
        ('{"format": "inference-stack simulation", "version": 1}', "it has no 'series'"),
    ],
)
def test_what_is_no_report_is_refused_with_the_reason(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InferenceError, match=why):
        read(path)


def test_a_missing_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="No such file"):
        read(tmp_path / "none.json")


# -- comparison


def row(rows: list[Row], label: str) -> Row:
    return next(row for row in rows if row.metric.label == label)


def two(six: Run) -> dict[str, dict[str, Any]]:
    """The six, and a run twice as quick that costs three times as much."""
    first, second = summarise(six), summarise(six)
    second["latency"] = {
        key: {name: value / 2 for name, value in entry.items()} for key, entry in first["latency"].items()
    }
    second["cost"] = first["cost"] | {"dollars": 27.0}
    return {"before": first, "after": second}


def test_less_latency_is_better(six: Run) -> None:
    found = row(compare(two(six)), "TTFT p50")
    assert (found.values, found.ratios, found.verdicts) == ((1.0, 0.5), (None, 0.5), ("", "better"))
    assert found.shown == ("1 s", "500 ms")


def test_more_dollars_are_worse(six: Run) -> None:
    found = row(compare(two(six)), "dollars")
    assert (found.ratios[1], found.verdicts[1]) == (3.0, "worse")


def test_more_goodput_is_better(six: Run) -> None:
    named = two(six)
    named["after"]["goodput"] = {"share": 1.0, "requests_per_second": 1.0}
    assert row(compare(named), "goodput, share").verdicts[1] == "better"


def test_equal_values_are_the_same(six: Run) -> None:
    assert row(compare(two(six)), "preemptions").verdicts[1] == "same"


def test_what_reads_alike_is_the_same(six: Run) -> None:
    named = two(six)
    named["before"]["prefix_hit_rate"], named["after"]["prefix_hit_rate"] = 0.1340, 0.1342
    found = row(compare(named), "prefix hits, share of prompt tokens")
    assert (found.shown[0], found.verdicts[1]) == (found.shown[1], "same")


def test_what_has_no_better_way_is_not_judged(six: Run) -> None:
    named = two(six)
    named["after"]["utilisation"] = 0.9
    assert row(compare(named), "utilisation").verdicts[1] == ""


def test_from_nothing_there_is_a_verdict_but_no_ratio(six: Run) -> None:
    named = two(six)
    named["before"]["preemptions"] = 0
    found = row(compare(named), "preemptions")
    assert (found.ratios[1], found.verdicts[1]) == (None, "worse")


def test_a_metric_that_one_run_lacks_is_shown_without_verdict(six: Run) -> None:
    named = two(six)
    named["after"]["cost"]["dollars"] = None
    found = row(compare(named), "dollars")
    assert (found.shown, found.verdicts[1]) == (("$9.00", "–"), "")


def test_a_metric_that_no_run_has_is_left_out() -> None:
    labels = [found.metric.label for found in compare({"a": summarise(empty()), "b": summarise(empty())})]
    assert "TTFT p50" not in labels
    assert "requests" in labels


def test_settings_that_differ_are_named_by_their_place() -> None:
    found = differences(
        {
            "a": {"fleet": {"nodes": 2, "preset": "l4"}, "tenants": [{"weight": 1}]},
            "b": {"fleet": {"nodes": 3, "preset": "l4"}, "tenants": [{"weight": 1}], "seed": 7},
        }
    )
    assert found == [("fleet.nodes", ("2", "3")), ("seed", ("–", "7"))]
