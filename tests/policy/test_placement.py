"""Which worker of a node gets a request."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_stack.core.stats import StepTimeModel
from inference_stack.policy.placement import Load, least_wait, predicted_wait

SPEED = StepTimeModel(base=0.01, per_token=0.001, per_row=0.001, per_context=1e-6)


def load(**changes: object) -> Load:
    idle = {"speed": SPEED, "chunk": 512, "places": 8, "rows": 0, "prompt": 0, "context": 0}
    return Load(**{**idle, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "busier",
    [
        {"rows": 1},
        {"prompt": 1},
        {"context": 1},
        {"rows": 8, "places": 8},
        {"speed": StepTimeModel(base=0.02, per_token=0.001)},
    ],
)
def test_whatever_is_there_already_takes_longer(busier: dict[str, object]) -> None:
    context = {"rows": 1} if "context" in busier else {}
    assert least_wait([load(**busier, **context), load(**context)], 10) == 1


def test_equal_workers_are_taken_in_order() -> None:
    assert least_wait([load(), load()], 10) == 0


def test_a_full_worker_makes_wait_for_a_place() -> None:
    full, nearly = load(rows=8), load(rows=7)
    assert predicted_wait(full, 10) > 2 * predicted_wait(nearly, 10)


def test_workers_of_unknown_speed_are_told_apart_by_their_work() -> None:
    unknown = StepTimeModel()
    assert least_wait([load(speed=unknown, prompt=100), load(speed=unknown)], 10) == 1


def test_nothing_to_choose_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        least_wait([], 10)


@given(st.integers(1, 5000), st.integers(0, 20), st.integers(0, 5000))
def test_longer_prompts_never_wait_shorter(prompt: int, rows: int, ahead: int) -> None:
    there = load(rows=rows, prompt=ahead)
    assert predicted_wait(there, prompt) <= predicted_wait(there, prompt + 1)
