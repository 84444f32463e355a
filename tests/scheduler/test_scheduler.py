"""What the scheduler does in particular situations, one at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inference_stack.core.errors import InferenceError
from inference_stack.core.request import Continuation, FinishReason, Qos, Request, SamplingParams
from inference_stack.core.stats import StepTimeModel
from inference_stack.core.step import StepPlan, StepResult, ints
from inference_stack.scheduler.planner import in_turn
from inference_stack.scheduler.scheduler import Scheduler
from tests.scheduler.world import EOS, World, spec, true_token


def request(name: str, prompt: int = 10, **params: object) -> Request:
    """A request that decodes to its `max_tokens` unless told otherwise."""
    chosen = SamplingParams(**{"max_tokens": 8, "ignore_eos": True, **params})  # type: ignore[arg-type]
    return Request(id=name, model="m0", continuation=Continuation(prompt=tuple(range(prompt)), params=chosen, seed=1))


def one_model(**options: object) -> World:
    return World.build([(spec(),)], slab_count=40, **options)  # type: ignore[arg-type]


def plan_of(world: World) -> StepPlan:
    plan = world.models[0].scheduler.plan(world.now)
    assert plan is not None
    world.models[0].launch(plan)
    return plan


def one_token_each(plan: StepPlan) -> StepResult:
    counts = (plan.samples > 0).astype("int32")
    return StepResult(step=plan.step, model=plan.model, tokens=counts[:, None] * 8 - 1, counts=counts)


def run(world: World, *requests: Request) -> dict[str, FinishReason]:
    model = world.models[0]
    for each in requests:
        assert model.submit(each, world.now)
    world.drain(2000)
    world.check_empty()
    return model.finishes


def first_stop(name: str, prompt: int, token: int) -> int:
    """How many tokens `name` emits until `token`, inclusive."""
    return next(n for n in range(1, 1000) if true_token(name, prompt + n - 1) == token)


# -- refusals


@pytest.mark.parametrize(
    ("prompt", "code"), [(0, None), (400, "context_length_exceeded"), (4000, "context_length_exceeded")]
)
def test_a_prompt_that_can_never_run_is_refused(prompt: int, code: str | None) -> None:
    scheduler = one_model().models[0].scheduler
    with pytest.raises(InferenceError) as refused:
        scheduler.add(request("r", prompt), 0.0)
    assert refused.value.info.code == code and refused.value.info.status == 400
    assert not scheduler.has_work


def test_a_prompt_larger_than_all_memory_is_refused() -> None:
    world = World.build([(spec(),)], slab_count=2, blocks_per_slab=2)
    with pytest.raises(InferenceError, match="maximum context length is 64"):
        world.models[0].scheduler.add(request("r", 64), 0.0)


# -- ends


def test_the_stopping_token_is_part_of_the_answer() -> None:
    world = one_model()
    assert run(world, request("r", max_tokens=300, ignore_eos=False)) == {"r": FinishReason.STOP}
    assert world.models[0].received["r"][-1] == EOS


def test_a_request_can_ignore_the_end_token_and_bring_its_own() -> None:
    world = one_model()
    token = true_token("r", 15)
    assert run(world, request("r", max_tokens=300, stop_token_ids=(token,))) == {"r": FinishReason.STOP}
    assert len(world.models[0].received["r"]) == first_stop("r", 10, token)


def test_no_stop_counts_before_min_tokens() -> None:
    token = true_token("r", 12)
    world = one_model()
    run(world, request("r", max_tokens=300, min_tokens=20, stop_token_ids=(token,)))
    assert len(world.models[0].received["r"]) > 20


def test_the_model_length_ends_a_completion() -> None:
    world = one_model(max_model_len=50)
    assert run(world, request("r", 20, max_tokens=300)) == {"r": FinishReason.LENGTH}
    assert len(world.models[0].received["r"]) == 30


@pytest.mark.parametrize(("emitted", "finish"), [((5, 6, 7), FinishReason.LENGTH), ((5, 9), FinishReason.STOP)])
def test_a_continuation_that_is_complete_ends_at_once(emitted: tuple[int, ...], finish: FinishReason) -> None:
    scheduler = one_model().models[0].scheduler
    original = request("r", max_tokens=3, stop_token_ids=(9,))
    scheduler.add(replace(original, continuation=replace(original.continuation, emitted=emitted)), 0.0)
    assert scheduler.has_work and scheduler.plan(0.0) is None
    (delta,) = scheduler.drain_deltas()
    assert (delta.finish, delta.tokens) == (finish, ()) and not scheduler.has_work


def test_a_prompt_can_be_scored_without_a_token_sampled() -> None:
    world = one_model()
    assert run(world, request("r", 90, max_tokens=0, prompt_logprobs=0)) == {"r": FinishReason.LENGTH}
    assert world.models[0].received["r"] == []


def test_a_prompt_of_one_token_can_be_scored() -> None:
    scheduler = one_model().models[0].scheduler
    scheduler.add(request("r", 1, max_tokens=0, prompt_logprobs=0), 0.0)
    (delta,) = scheduler.drain_deltas()
    assert delta.prompt_logprobs == () and delta.finish is FinishReason.LENGTH


# -- sharing work


def test_identical_prompts_at_once_are_computed_once() -> None:
    world = one_model(max_running=8, max_batch_tokens=100)
    model = world.models[0]
    for name in "abcd":
        model.submit(request(name, 101), world.now)
    computed = 0
    while model.scheduler.has_work:
        plan = plan_of(world)
        computed += int(plan.num_tokens[plan.start < 101].sum())
        model.retire(world.now)
    assert computed == 101 + 3 * 5
    assert model.hits == 3 * 96


def test_rows_that_do_not_fit_one_step_decode_in_turn() -> None:
    places = np.array([1, 2, 3, 5, 8, 13, 21, 34])
    turns = np.zeros(40, int)
    for step in range(80):
        chosen = in_turn(places, 5, step)
        assert len(chosen) == 5 and (np.diff(chosen) > 0).all()
        turns[chosen] += 1
    assert (turns[places] == 50).all() and turns.sum() == 400


def test_a_follower_goes_on_when_its_leader_is_aborted() -> None:
    world = one_model(max_batch_tokens=32)
    model = world.models[0]
    model.submit(request("leader", 101), world.now)
    model.submit(request("follower", 101), world.now)
    world.step(model)
    model.abort("leader")
    world.drain(100)
    assert model.finishes == {"follower": FinishReason.LENGTH}


def test_cached_tokens_are_told_once() -> None:
    world = one_model()
    scheduler = world.models[0].scheduler
    run(world, request("first", 100))
    world.models[0].submit(request("second", 100), world.now)
    told = []
    while scheduler.has_work:
        plan_of(world)
        told += [delta.cached_tokens for delta in world.models[0].retire(world.now)]
    assert told[0] == 96 and set(told[1:]) == {None}


def test_time_in_the_queue_is_told_with_the_first_token() -> None:
    world = one_model()
    scheduler = world.models[0].scheduler
    arrived = replace(request("r", 20, max_tokens=3), arrival=1.0)
    scheduler.add(arrived, 1.5)
    told = []
    now = 3.0
    while scheduler.has_work:
        plan = scheduler.plan(now)
        now += 1.0
        if plan is not None:
            told += [delta.queue_seconds for delta in scheduler.advance(one_token_each(plan), now)]
    assert told == [2.0, None, None]


def test_a_continuation_says_nothing_of_the_queue() -> None:
    scheduler = one_model().models[0].scheduler
    resumed = request("r", 20, max_tokens=3)
    scheduler.add(replace(resumed, continuation=replace(resumed.continuation, emitted=(5,))), 0.0)
    plan = scheduler.plan(1.0)
    assert plan is not None
    assert [delta.queue_seconds for delta in scheduler.advance(one_token_each(plan), 2.0)] == [None]


def test_prompt_logprobs_take_nothing_from_the_cache() -> None:
    world = one_model()
    run(world, request("first", 100), request("second", 100, prompt_logprobs=1))
    assert world.models[0].hits == 0


def test_a_windowed_model_holds_no_more_than_its_window() -> None:
    world = World.build([(spec("window", window=40),)], slab_count=40)
    model = world.models[0]
    model.submit(request("r", 10, max_tokens=300), world.now)
    most = 0
    while model.scheduler.has_work:
        world.step(model)
        most = max(most, model.scheduler.kv.usage().used)
    assert most <= 4


# -- order


def test_decode_rows_come_before_prompt_chunks_within_the_budget() -> None:
    world = one_model(max_batch_tokens=20)
    model = world.models[0]
    model.submit(request("short", 5), world.now)
    world.step(model)
    model.submit(request("long", 100), world.now)
    plan = plan_of(world)
    assert plan.num_tokens.tolist() == [1, 19] and plan.samples.tolist() == [1, 0]


def test_an_inter_token_target_shrinks_prompt_chunks_only_while_something_decodes() -> None:
    world = one_model(max_batch_tokens=200, itl_target=0.005)
    old = world.models[0].scheduler
    prior = StepTimeModel(base=0.001, per_token=0.0001)
    model = world.models[0]
    model.scheduler = Scheduler(old.limits, old.kv, prior=prior)
    model.submit(request("first", 150), world.now)
    assert plan_of(world).num_tokens.tolist() == [150]
    model.retire(world.now)
    model.submit(replace(request("second", 150), cache_salt="x"), world.now)
    decode, chunk = plan_of(world).num_tokens.tolist()
    assert decode == 1 and 38 <= chunk <= 39


def test_an_important_request_takes_the_place_of_an_unimportant_one() -> None:
    world = one_model(max_running=1)
    model = world.models[0]
    model.submit(request("batch", max_tokens=60), world.now)
    world.step(model)
    model.submit(replace(request("urgent"), qos=Qos(priority=100)), world.now)
    while "urgent" in model.open:
        world.step(model)
    assert "batch" in model.open and model.scheduler.stats().preemptions == 1
    world.drain(200)
    world.check_empty()


def test_an_isolated_request_runs_alone_until_it_has_spoken() -> None:
    world = one_model(lag=2)
    model = world.models[0]
    for name in ("a", "b"):
        model.submit(request(name), world.now)
    model.submit(replace(request("suspect"), isolated=True), world.now)
    model.submit(request("c"), world.now)
    while model.scheduler.has_work:
        world.step(model)
        for flight in () if model.received["suspect"] else model.flights:
            names = {row.new.request_id for row in flight.rows}
            assert "suspect" not in names or names == {"suspect"}
    world.check_empty()


# -- replacement, failure, deadlines


def test_a_higher_attempt_replaces_and_a_lower_one_is_ignored() -> None:
    world = one_model()
    model = world.models[0]
    first = request("r", max_tokens=20)
    model.submit(first, world.now)
    for _ in range(4):
        world.step(model)
    emitted = tuple(model.received["r"])
    model.submit(replace(first, attempt=2, continuation=replace(first.continuation, emitted=emitted)), world.now)
    model.scheduler.add(replace(first, attempt=1), world.now)
    world.drain(100)
    world.check_empty()
    assert len(model.received["r"]) == 20


def test_an_abort_with_steps_in_flight_is_silent() -> None:
    world = one_model(lag=2)
    model = world.models[0]
    model.submit(request("r"), world.now)
    for _ in range(3):
        world.step(model)
    assert model.flights
    model.abort("r")
    world.drain(10)
    world.check_empty()


def test_a_token_that_did_not_come_voids_rows_in_flight_even_of_a_preempted_request() -> None:
    world = one_model(lag=2, max_running=1)
    model = world.models[0]
    model.submit(request("low", max_tokens=20), world.now)
    for _ in range(4):
        world.step(model)
    assert len(model.flights) == 2
    model.submit(replace(request("urgent"), qos=Qos(priority=100)), world.now)
    model.stalls = 1.0
    world.step(model)
    model.stalls = 0.0
    world.drain(200)
    world.check_empty()
    assert model.scheduler.stats().preemptions == 1


def test_a_failing_row_fails_its_request_alone() -> None:
    world = one_model()
    model = world.models[0]
    model.faults = 1.0
    model.submit(request("bad"), world.now)
    world.step(model)
    assert model.finishes == {"bad": FinishReason.ERROR}
    model.faults = 0.0
    assert run(world, request("good"))["good"] is FinishReason.LENGTH


def test_a_deadline_is_told_even_when_no_step_runs() -> None:
    scheduler = one_model(max_running=1).models[0].scheduler
    scheduler.add(replace(request("r"), qos=Qos(deadline=5.0), isolated=True), 0.0)
    assert scheduler.plan(6.0) is None
    (delta,) = scheduler.drain_deltas()
    assert delta.error is not None and delta.error.code == "deadline_exceeded" and not scheduler.has_work


def test_a_first_token_deadline_is_met_by_the_first_token() -> None:
    world = one_model()
    model = world.models[0]
    model.submit(replace(request("r"), qos=Qos(ttft_deadline=5.0)), world.now)
    world.step(model)
    world.now = 6.0
    world.drain(50)
    assert model.finishes == {"r": FinishReason.LENGTH}


def test_results_out_of_order_are_refused() -> None:
    world = one_model(lag=1)
    world.models[0].submit(request("r"), 0.0)
    plan_of(world)
    with pytest.raises(ValueError, match="oldest step in flight is 0"):
        world.models[0].scheduler.advance(StepResult(step=1, model="m0", tokens=ints(), counts=ints()), 0.0)


def test_numbers_add_up() -> None:
    world = one_model()
    run(world, request("a", 100, max_tokens=5), request("b", 100, max_tokens=7))
    stats = world.models[0].scheduler.stats()
    assert (stats.prompt_tokens, stats.generation_tokens, stats.running, stats.waiting) == (200, 12, 0, 0)
    assert (stats.prefix_queries, stats.prefix_hits) == (200, 96)
    assert stats.kv_blocks_used == 0 and stats.kv_blocks_cached > 0
