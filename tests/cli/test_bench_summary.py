import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_stack.cli.bench.spec import Outcome
from inference_stack.cli.bench.summary import keeps, parse_slos, percentile, spread, summarise
from inference_stack.core.errors import InferenceError

GOOD = Outcome(begin=0.0, events=[0.1, 0.2, 0.4], end=0.5, prompt_tokens=10, output_tokens=3)
LATE = Outcome(begin=1.0, events=[2.0], end=2.0, prompt_tokens=10, output_tokens=1)
FAILED = Outcome(begin=0.0, end=4.0, error="timeout")


def test_percentiles_lie_between_ranks() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
    assert percentile([7.0], 99) == 7.0


@given(st.lists(st.floats(0, 100), min_size=1))
def test_percentiles_are_ordered_and_inside(seconds: list[float]) -> None:
    row = spread(seconds)
    assert row is not None
    points = [row[name] for name in ("p50", "p90", "p95", "p99", "max")]
    assert points == sorted(points)
    assert 1000 * min(seconds) <= row["p50"]


def test_nothing_has_no_spread() -> None:
    assert spread([]) is None


def test_throughput_counts_good_requests_over_the_whole_time() -> None:
    result = summarise([GOOD, LATE, FAILED], {})
    assert result["duration_s"] == 4.0
    assert (result["completed"], result["errors"]) == (2, {"timeout": 1})
    assert result["output_tokens_per_s"] == 1.0
    assert result["total_tokens_per_s"] == 6.0
    assert "goodput_per_s" not in result


def test_latencies_are_in_milliseconds() -> None:
    result = summarise([GOOD], {})
    assert result["ttft_ms"]["p50"] == pytest.approx(100)
    assert result["tpot_ms"]["p50"] == pytest.approx(150)
    assert result["itl_ms"]["max"] == pytest.approx(200)
    assert result["e2e_ms"]["p99"] == pytest.approx(500)


def test_a_single_token_has_no_time_per_token() -> None:
    assert summarise([LATE], {})["tpot_ms"] is None


def test_goodput_counts_what_keeps_every_objective() -> None:
    result = summarise([GOOD, LATE], parse_slos("ttft:500,e2e:600"))
    assert result["goodput_per_s"] == pytest.approx(0.5)
    assert not keeps(GOOD, {"tpot": 0.1})


@pytest.mark.parametrize("text", ["ttft", "ttft:soon", "latency:5"])
def test_an_objective_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InferenceError, match="objective"):
        parse_slos(text)


def test_no_outcome_at_all_divides_by_nothing() -> None:
    assert summarise([], {})["requests_per_s"] == 0.0
