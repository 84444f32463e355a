"""Reports wait for one another only where many tokens cross a link, and never for long."""

from hypothesis import given
from hypothesis import strategies as st

from inference_stack.wire.pace import JOIN_SECONDS, Pace


def run(deltas_per_step: int, step: float, seconds: float = 2.0) -> tuple[int, float]:
    """Reports at a steady pace: how many messages they make in the second half, and the longest wait."""
    pace, now, messages, longest = Pace(), 0.0, 0, 0.0
    waiting, free_at = 0, 0.0
    while now < seconds:
        now += step
        if not waiting:
            free_at = now + pace.wait(now)
            longest = max(longest, free_at - now)
        waiting += deltas_per_step
        if now >= free_at:
            pace.sent(waiting, now)
            messages += now > seconds / 2
            waiting = 0
    return messages, longest


def test_few_tokens_go_at_once() -> None:
    messages, longest = run(deltas_per_step=1, step=0.00125)
    assert messages >= 799 and longest == 0


def test_many_tokens_go_together() -> None:
    messages, longest = run(deltas_per_step=20, step=0.00125)
    assert messages <= 210 and 0 < longest <= JOIN_SECONDS


def test_slow_steps_never_wait_however_many_tokens_they_have() -> None:
    assert run(deltas_per_step=500, step=0.008)[1] == 0.0


def test_a_link_that_was_busy_forgets_it() -> None:
    pace = Pace()
    for step in range(1000):
        pace.sent(20, step * 0.001)
    assert pace.wait(1.0) > 0
    assert pace.wait(2.0) == 0


@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 1)), max_size=50))
def test_no_wait_is_longer_than_allowed(reports: list[tuple[int, float]]) -> None:
    pace, now = Pace(), 0.0
    for deltas, later in reports:
        now += later
        assert 0 <= pace.wait(now) <= JOIN_SECONDS + 1e-9
        pace.sent(deltas, now)
