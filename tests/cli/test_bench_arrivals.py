import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_stack.cli.bench.arrivals import offsets


@given(st.integers(0, 50), st.floats(0.1, 100), st.floats(0.1, 10), st.integers(0, 9))
def test_arrivals_begin_at_zero_and_never_go_back(count: int, rate: float, burstiness: float, seed: int) -> None:
    times = offsets(count, rate, burstiness, seed)
    assert len(times) == count
    assert times[:1] == [0.0][:count]
    assert times == sorted(times)
    assert times == offsets(count, rate, burstiness, seed)


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 4.0, float("inf")])
def test_the_mean_rate_is_the_one_asked_for(burstiness: float) -> None:
    times = offsets(20_001, 50.0, burstiness, 1)
    assert 20_000 / times[-1] == pytest.approx(50.0, rel=0.05)


def test_burstiness_is_the_gammas_shape() -> None:
    times = offsets(20_001, 1.0, 4.0, 2)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert sum((gap - 1.0) ** 2 for gap in gaps) / len(gaps) == pytest.approx(0.25, rel=0.1)
