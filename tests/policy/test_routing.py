"""The router: predicted waits decide, prefixes count as computed, and what is gone is forgotten."""

from __future__ import annotations

from inference_stack.core.stats import InstanceStats, StepTimeModel
from inference_stack.policy.routing import Router

NAMES = [bytes([block]) * 16 for block in range(10)]
SPEED = StepTimeModel(base=0.01, per_token=1e-4)


def router(nodes: int = 2) -> Router:
    """Equal nodes with four places each."""
    made = Router(nodes, 128)
    for node in range(nodes):
        made.expect(node, SPEED, 4)
    return made


def chosen(made: Router, tokens: int = 160, names: list[bytes] | None = None) -> int:
    """Where a request would go."""
    choice = made.choose(tokens, names or [])
    assert choice is not None
    return choice.node


def test_a_node_with_work_ahead_is_avoided() -> None:
    made = router()
    made.sent(0, 160, 160)
    assert chosen(made) == 1


def test_a_faster_node_is_preferred_before_it_has_reported() -> None:
    made = router()
    made.expect(1, StepTimeModel(base=0.001, per_token=1e-5), 4)
    assert chosen(made) == 1


def test_what_a_node_holds_need_not_be_computed() -> None:
    made = router()
    made.prefixes.sent(NAMES, 1)
    choice = made.choose(160, NAMES)
    assert choice is not None
    assert (choice.node, choice.cached_tokens) == (1, 159)


def test_a_closed_node_is_not_chosen_and_none_is_without_any() -> None:
    made = router()
    made.close(0, forget=False)
    assert chosen(made) == 1
    made.close(1, forget=False)
    assert made.choose(160, []) is None


def test_a_draining_node_keeps_its_prefixes_and_a_dead_one_loses_them_and_its_queue() -> None:
    for forget in (False, True):
        made = router()
        made.prefixes.sent(NAMES, 1)
        made.observe(1, InstanceStats(model="m", waiting=3, step_time=SPEED), 4)
        made.close(1, forget=forget)
        made.back(1)
        idle, choice = made.choose(1, []), made.choose(160, NAMES)
        assert choice is not None and (choice.cached_tokens > 0) != forget
        assert idle is not None and (idle.predicted_seconds == idle.runner_up_seconds) == forget


def test_those_who_wait_before_a_full_node_are_counted() -> None:
    made = router()
    made.observe(0, InstanceStats(model="m", waiting=5, step_time=SPEED), 4)
    assert chosen(made) == 1


def test_only_the_named_nodes_are_considered() -> None:
    made = router(3)
    among = made.usable.copy()
    among[:2] = False
    choice = made.choose(160, [], among)
    assert choice is not None and choice.node == 2


def test_a_node_that_is_added_is_not_used_until_it_is_back() -> None:
    made = router(1)
    made.close(0, forget=True)
    number = made.add()
    assert made.choose(160, []) is None
    made.back(number)
    assert chosen(made) == number
