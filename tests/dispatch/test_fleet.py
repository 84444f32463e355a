"""Several nodes: streams move between them, each node gets what it can take, and nothing runs twice for a client."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_stack.core.request import FinishReason, Qos
from inference_stack.dispatch.node import node_hint
from tests.dispatch.world import MODEL, house, request, state


def test_load_is_spread() -> None:
    h = house("a", "b")
    for number in range(4):
        h.submit(request(str(number)))
    assert sorted(node for node, _ in h.take()) == ["a", "a", "b", "b"]


def test_streams_of_a_silent_node_go_on_elsewhere_most_important_first() -> None:
    h = house("a")
    for name, priority in (("low", -100), ("high", 100), ("plain", 0)):
        h.submit(request(name, qos=Qos(priority=priority)))
    first = {one.id: one for one in h.requests()}
    h.emit(first["plain"], 5, node="a")
    h.join("b")
    h.dispatcher.detached("a", "silent")
    sent = h.take()
    assert [(node, one.id) for node, one in sent] == [("b", "high"), ("b", "plain"), ("b", "low")]
    assert sent[1][1].continuation.emitted == (5,)
    assert h.moved == [3]


def test_a_ghost_of_a_node_that_was_given_up_says_nothing() -> None:
    h = house("a", "b")
    h.submit(request())
    ((node, first),) = h.take()
    other = "b" if node == "a" else "a"
    h.dispatcher.detached(node, "silent")
    ((where, second),) = h.take()
    assert where == other
    h.dispatcher.attached(node)
    h.emit(first, 9, node=node)
    h.emit(second, 1, node=other)
    assert h.tokens("r") == [1]


def test_what_a_lost_node_still_runs_is_stopped_when_it_is_back() -> None:
    h = house("a", "b")
    h.submit(request())
    ((node, _),) = h.take()
    h.dispatcher.detached(node, "silent")
    h.take()
    h.join(node)
    assert h.stopped == [(node, "r")]


def test_what_waits_for_its_turn_is_stopped_where_it_was_left_once_it_runs_elsewhere() -> None:
    h = house("a", recovery_tokens=60)
    for name in ("x", "y", "z"):
        h.submit(request(name, prompt=40))
    h.take()
    h.join("b")
    h.dispatcher.detached("a", "silent")
    ((_, x),) = h.take()
    h.join("a")
    assert [(node, one.id) for node, one in h.take()] == [("a", "y")]
    assert h.stopped == [("a", "x")]
    h.emit(x, 1, node="b")
    assert [(node, one.id) for node, one in h.take()] == [("b", "z")]
    assert h.stopped == [("a", "x"), ("a", "z")]


def test_what_is_aborted_while_it_waits_is_stopped_where_it_was_left() -> None:
    h = house("a", recovery_tokens=60)
    flights = [h.submit(request(name, prompt=40)) for name in ("x", "y")]
    h.take()
    h.dispatcher.detached("a", "silent")
    h.join("a")
    assert [one.id for one in h.requests()] == ["x"] and not h.stopped
    flights[1].abort()
    assert h.stopped == [("a", "y")]


def test_the_only_node_gets_its_streams_back_when_it_is_back() -> None:
    h = house("a")
    h.submit(request())
    (first,) = h.requests()
    h.emit(first, 4, node="a")
    h.dispatcher.detached("a", "cut")
    assert not h.take()
    h.join("a")
    ((node, second),) = h.take()
    assert node == "a" and second.continuation.emitted == (4,) and second.attempt > first.attempt
    assert not h.stopped


def test_failover_prefers_a_node_that_computes_alike() -> None:
    h = house("a")
    h.submit(request())
    (first,) = h.requests()
    h.emit(first, 4, node="a")
    h.join("other", numerics="y")
    h.join("alike")
    for number in range(3):
        h.submit(request(f"load{number}"))
    h.take()
    h.dispatcher.detached("a", "killed")
    assert next(node for node, one in h.take() if one.id == "r") == "alike"
    assert h.mismatches == 0


def test_other_numerics_are_counted_or_refused() -> None:
    for fail in (False, True):
        h = house("a", fail_on_mismatch=fail)
        h.submit(request())
        (first,) = h.requests()
        h.emit(first, 4, node="a")
        h.join("other", numerics="y")
        h.dispatcher.detached("a", "killed")
        if fail:
            error = h.last("r").error
            assert error is not None and error.status == 503 and not h.take()
        else:
            assert h.mismatches == 1 and len(h.take()) == 1


def test_a_stream_without_tokens_may_start_over_anywhere() -> None:
    h = house("a", fail_on_mismatch=True)
    h.submit(request())
    h.take()
    h.join("other", numerics="y")
    h.dispatcher.detached("a", "killed")
    assert [node for node, _ in h.take()] == ["other"] and h.mismatches == 0


def test_recovery_is_paced_by_the_tokens_to_recompute() -> None:
    h = house("a", recovery_tokens=100)
    for number in range(5):
        h.submit(request(str(number), prompt=40))
    h.take()
    h.join("b")
    h.dispatcher.detached("a", "killed")
    sent = h.requests()
    assert [one.id for one in sent] == ["0", "1"]
    h.emit(sent[0], 1, node="b")
    assert [one.id for one in h.requests()] == ["2"]


def test_pacing_does_not_hold_new_requests_up() -> None:
    h = house("a", recovery_tokens=10)
    for number in range(3):
        h.submit(request(str(number), prompt=40))
    h.take()
    h.join("b")
    h.dispatcher.detached("a", "killed")
    assert len(h.take()) == 1
    h.submit(request("new"))
    assert [one.id for one in h.requests()] == ["new"]


def test_a_draining_node_gets_nothing_new_and_keeps_what_it_has() -> None:
    h = house("a")
    h.submit(request())
    (first,) = h.requests()
    h.join("b")
    h.dispatcher.state("a", state("a", draining=True))
    h.submit(request("new"))
    assert [node for node, _ in h.take()] == ["b"]
    h.emit(first, 3, node="a", finish=FinishReason.STOP)
    assert h.tokens("r") == [3]


def test_what_a_drained_node_gives_back_moves() -> None:
    h = house("a")
    h.submit(request())
    (first,) = h.requests()
    h.emit(first, 3, node="a")
    h.join("b")
    h.dispatcher.state("a", state("a", draining=True))
    h.dispatcher.lost("a", ["r"], "drained", False)
    ((node, second),) = h.take()
    assert node == "b" and second.continuation.emitted == (3,) and not second.isolated


def test_a_suspect_is_tried_on_one_node_while_others_serve() -> None:
    h = house("a", "b")
    h.submit(request("bad"))
    for _ in range(2):
        ((node, attempt),) = h.take()
        h.die(attempt, node=node)
    ((trial, _),) = h.take()
    for number in range(4):
        h.submit(request(str(number)))
    assert {node for node, _ in h.take()} == {"a", "b"} - {trial}


def test_a_hint_leads_to_the_node_that_may_still_compute_it() -> None:
    h = house("a", "b", "c")
    for number in range(6):
        h.submit(request(str(number)))
    h.submit(request(), holder=node_hint("c"))
    assert h.take()[-1][0] == "c"


def test_a_stream_whose_client_came_back_prefers_what_computed_its_tokens() -> None:
    h = house("a", "b")
    h.join("other", numerics="y")
    for number in range(4):
        h.submit(request(str(number)))
    h.submit(request(), numerics="y")
    assert h.take()[-1][0] == "other" and h.mismatches == 0


def test_streams_wait_for_a_while_when_no_node_can_be_reached() -> None:
    h = house("a", homeless_seconds=60.0)
    h.submit(request())
    h.dispatcher.detached("a", "cut")
    h.now += 59
    h.dispatcher.tick()
    assert not h.news["r"]
    h.now += 2
    h.dispatcher.tick()
    error = h.last("r").error
    assert error is not None and error.status == 503


class Chaos:
    """Random faults against two nodes whose engines count upwards: every stream must be 0, 1, 2 …"""

    LENGTH = 6

    def __init__(self) -> None:
        self.h = house("a", "b", recovery_tokens=20)
        self.engines: dict[str, dict[str, tuple[int, int]]] = {"a": {}, "b": {}}
        self.up = {"a": True, "b": True}
        self.number = 0

    def settle(self) -> None:
        for node, one in self.h.take():
            if self.up[node]:
                self.engines[node][one.id] = (one.attempt, len(one.continuation.emitted))
        for node, name in self.h.stopped:
            self.engines[node].pop(name, None)
        self.h.stopped.clear()

    def step(self, node: str) -> None:
        for name, (attempt, count) in list(self.engines[node].items()):
            finish = FinishReason.LENGTH if count + 1 == self.LENGTH else None
            one = request(name, attempt=attempt)
            self.h.emit(one, count, node=node, finish=finish)
            if finish:
                self.engines[node].pop(name, None)
            else:
                self.engines[node][name] = (attempt, count + 1)
            self.settle()

    def act(self, what: str, node: str) -> None:
        if what == "submit":
            self.number += 1
            self.h.submit(request(str(self.number)))
        elif what == "step":
            self.step(node)
        elif what == "cut" and self.up[node]:
            self.h.dispatcher.detached(node, "cut")  # its engine goes on, unheard
            self.up[node] = False
        elif what == "leave" and not self.up[node]:
            self.engines[node] = {}  # long silent: its orphans have ended
            self.h.dispatcher.forget(node)
        elif what == "back" and not self.up[node]:
            self.up[node] = True
            self.h.join(node)
        elif what == "kill" and self.up[node]:
            lost, self.engines[node] = list(self.engines[node]), {}
            self.h.dispatcher.state(node, state(node, ready=False))
            self.h.dispatcher.lost(node, lost, "killed", True)
            self.h.dispatcher.state(node, state(node))
        self.settle()
        self.h.dispatcher.check()


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "step", "step", "cut", "leave", "back", "kill"]), st.sampled_from("ab")
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(ACTIONS)
def test_whatever_happens_every_stream_is_whole(actions: list[tuple[str, str]]) -> None:
    chaos = Chaos()
    for what, node in actions:
        chaos.act(what, node)
    for node in "ab":
        chaos.act("back", node)
    for _ in range(200):
        if chaos.h.dispatcher.idle:
            break
        chaos.step("a")
        chaos.step("b")
        chaos.h.dispatcher.tick()
        chaos.settle()
    whole = list(range(Chaos.LENGTH))
    for name, news in chaos.h.news.items():
        crashed = bool(news) and news[-1].error is not None and news[-1].error.code == "worker_crashed"
        assert chaos.h.tokens(name) == (whole[: len(chaos.h.tokens(name))] if crashed else whole)
    assert chaos.h.dispatcher.idle


def test_streams_that_may_not_go_on_end_and_what_waits_beside_them_is_placed_once() -> None:
    h = house("a", fail_on_mismatch=True)
    h.submit(request("old"))
    h.emit(h.requests()[0], 5, node="a")
    h.dispatcher.detached("a", "silent")
    h.submit(request("new"))
    h.join("b", numerics="y")
    assert h.last("old").finish is FinishReason.ERROR
    assert [(node, one.id) for node, one in h.take()] == [("b", "new")]
    h.dispatcher.check()


def test_what_is_aborted_because_a_sibling_may_not_go_on_is_stopped_after_it_was_sent() -> None:
    h = house("a", fail_on_mismatch=True)
    orders: list[str] = []
    younger = [h.submit(request("younger"))]
    h.dispatcher.submit(request("old"), lambda delta: younger[0].abort() if delta.finish else None)
    h.emit(h.requests()[1], 5, node="a")
    h.dispatcher.detached("a", "silent")
    h.send = lambda node, requests: orders.extend(f"run {one.id}" for one in requests)  # type: ignore[method-assign]
    h.stop = lambda node, ids: orders.extend(f"stop {one}" for one in ids)  # type: ignore[method-assign]
    h.join("b", numerics="y")
    assert orders == ["run younger", "stop younger"]
    h.dispatcher.check()


def test_streams_that_may_not_go_on_otherwise_wait_while_no_node_is_in_reach() -> None:
    h = house("a", fail_on_mismatch=True)
    h.submit(request())
    h.emit(h.requests()[0], 5, node="a")
    h.dispatcher.detached("a", "silent")
    h.join("a")
    assert [one.continuation.emitted for one in h.requests()] == [(5,)]


@pytest.mark.parametrize("condition", ["unloaded", "drained"])
def test_what_no_node_serves_any_more_is_told_so_in_the_end(condition: str) -> None:
    h = house("a", homeless_seconds=60)
    h.submit(request())
    h.take()
    other = (replace(MODEL, name="other"),)
    gone = replace(state("a"), models=other) if condition == "unloaded" else state("a", draining=True)
    h.dispatcher.state("a", gone)
    h.dispatcher.lost("a", ["r"], condition, present=False)
    h.now += 59
    h.dispatcher.tick()
    assert not h.news["r"]
    h.now += 2
    h.dispatcher.tick()
    error = h.last("r").error
    assert error is not None and error.status == 503


def test_what_a_node_may_come_to_serve_waits_for_it() -> None:
    h = house("a", homeless_seconds=60)
    h.submit(request())
    h.die(*h.requests(), node="a")
    h.dispatcher.state("a", state("a", ready=False))
    h.dispatcher.lost("a", ["r"], "killed", present=True)
    for _ in range(5):
        h.now += 59
        h.dispatcher.tick()
    assert not h.news["r"]
    h.dispatcher.state("a", state("a"))
    assert [one.id for one in h.requests()][-1:] == ["r"]


def test_a_link_that_replaces_another_takes_its_streams_over() -> None:
    h = house("a")
    h.submit(request())
    h.take()
    h.join("a")
    assert [(node, one.attempt) for node, one in h.take()] == [("a", 1)]
    h.dispatcher.check()


def test_a_hint_finds_its_node_at_a_new_address() -> None:
    h = house("a", "b")
    h.dispatcher.attached("old")
    h.dispatcher.state("old", state("moved"))
    h.dispatcher.detached("old", "its address changed")
    h.dispatcher.attached("new")
    h.dispatcher.state("new", state("moved"))
    h.submit(request(), holder=node_hint("moved"))
    assert [node for node, _ in h.take()] == ["new"]


def test_nodes_that_come_and_go_leave_nothing_behind() -> None:
    h = house("stays")
    for number in range(50):
        name = f"n{number}"
        h.join(name)
        for count in range(4):
            h.submit(request(f"{name}-{count}"))
        for node, one in h.take():
            if node == "stays":
                h.emit(one, 0, node=node, finish=FinishReason.LENGTH)
        h.dispatcher.detached(name, "gone")
        h.dispatcher.forget(name)
        for node, one in h.take():
            h.emit(one, 0, node=node, finish=FinishReason.LENGTH)
        h.dispatcher.check()
    assert h.dispatcher.idle and h.dispatcher.columns == 2


def test_a_node_that_is_linked_is_not_forgotten() -> None:
    h = house("a")
    h.submit(request())
    h.dispatcher.forget("a")
    ((node, one),) = h.take()
    h.emit(one, 0, node=node)
    assert h.tokens("r") == [0]


def test_a_number_that_was_anothers_begins_anew() -> None:
    h = house("a", "b")
    h.dispatcher.detached("a", "gone")
    h.dispatcher.forget("a")
    h.dispatcher.attached("c")
    h.submit(request())
    assert [node for node, _ in h.take()] == ["b"]  # c has its number, and has not told its state
    h.dispatcher.state("c", state("c"))
    h.submit(request("second"))
    assert [node for node, _ in h.take()] == ["c"]
