"""The histogram of the token path says what prometheus-client's would."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from inference_stack.telemetry.hot import HotHistogram

BOUNDS = (0.001, 0.01, 0.1, 1.0, 10.0)
VALUES = st.lists(st.sampled_from([*BOUNDS, 0.0, 0.0005, 0.05, 100.0]), max_size=50)


def lines(registry: CollectorRegistry) -> list[str]:
    text = generate_latest(registry).decode().splitlines()
    return [line for line in text if "_created" not in line and "_sum" not in line]


@given(VALUES, VALUES)
def test_it_shows_what_the_librarys_histogram_shows(first: list[float], second: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    hot = HotHistogram("x_seconds", "Help.", "model", BOUNDS, ours)
    plain = Histogram("x_seconds", "Help.", ("model",), buckets=BOUNDS, registry=theirs)
    for model, values in (("a", first), ("b", second)):
        for one in (hot.labels(model), plain.labels(model)):
            for value in values:
                one.observe(value)
    assert lines(ours) == lines(theirs)


def test_equal_values_can_be_counted_together() -> None:
    hot = HotHistogram("x_seconds", "Help.", "model", BOUNDS, CollectorRegistry())
    hot.labels("a").observe(0.05, 3)
    assert hot.labels("a").counts == [0, 0, 3, 0, 0, 0] and abs(hot.labels("a").total - 0.15) < 1e-12
