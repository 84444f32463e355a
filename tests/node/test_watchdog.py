"""Which silences are deaths."""

import pytest

from inference_stack.node.watchdog import QUIET_START_FACTOR, Limits, Watchdog
from inference_stack.wire.messages import Heartbeat, StepReport

LIMITS = Limits(heartbeat=5, step=60, start=600)


def ready_dog() -> Watchdog:
    dog = Watchdog(LIMITS, now=0)
    dog.ready(0)
    return dog


def test_silence_is_fatal() -> None:
    dog = ready_dog()
    assert dog.verdict(5) is None
    assert "silent" in str(dog.verdict(5.1))


def test_a_beating_worker_with_nothing_to_do_is_healthy() -> None:
    dog = ready_dog()
    for now in range(200):
        dog.hear(Heartbeat(steps=0, busy=False), now)
    assert dog.verdict(200) is None


def test_a_step_that_never_ends_is_fatal_though_the_heart_beats() -> None:
    dog = ready_dog()
    for now in range(62):
        dog.hear(Heartbeat(steps=7, busy=True), now)
    assert "no step" in str(dog.verdict(62))


@pytest.mark.parametrize("sign", [Heartbeat(steps=8, busy=True), StepReport(deltas=())])
def test_finished_steps_are_progress(sign: Heartbeat | StepReport) -> None:
    dog = ready_dog()
    for now in range(50):
        dog.hear(Heartbeat(steps=7, busy=True), now)
    dog.hear(sign, 50)
    dog.hear(Heartbeat(steps=8, busy=True), 100)
    assert dog.verdict(100) is None


def test_loading_may_be_quieter_but_not_for_ever() -> None:
    dog = Watchdog(LIMITS, now=0)
    assert dog.verdict(LIMITS.heartbeat * QUIET_START_FACTOR) is None
    for now in range(601):
        dog.hear(Heartbeat(steps=0, busy=False), now)
    assert "not ready" in str(dog.verdict(600.5))
