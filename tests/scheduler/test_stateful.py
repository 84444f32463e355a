"""Hypothesis drives a scheduler by rules of its own choosing.

What it finds is reported as it was found: shrinking takes minutes here (add `Phase.shrink` when hunting).
"""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from inference_stack.core.request import Qos
from tests.scheduler.traffic import random_request, redispatch
from tests.scheduler.world import ModelUnderTest, World, spec

GROUPS = {
    "full": [(spec(),)],
    "full and window": [(spec("full"), spec("window", window=24, layers=2))],
    "two models": [(spec(),), (spec("full"), spec("window", window=40))],
}


class SchedulerMachine(RuleBasedStateMachine):
    """Arrivals, aborts, re-dispatches, time and steps in any order; whatever is open at the end is drained."""

    world: World

    @initialize(
        groups=st.sampled_from(sorted(GROUPS)),
        lag=st.integers(0, 2),
        slabs=st.integers(6, 14),
        budget=st.sampled_from([5, 24, 64]),
        drafts=st.sampled_from([0, 3]),
        stalls=st.sampled_from([0.0, 0.05]),
    )
    def build(self, groups: str, lag: int, slabs: int, budget: int, drafts: int, stalls: float) -> None:
        self.world = World.build(
            GROUPS[groups],
            slab_count=slabs,
            lag=lag,
            max_batch_tokens=budget,
            max_drafts=drafts,
            stalls=stalls,
            max_running=3,
        )
        self.arrivals = 0

    def model(self, number: int) -> ModelUnderTest:
        return self.world.models[number % len(self.world.models)]

    @rule(number=st.integers(0, 1), seed=st.integers(0, 10_000), priority=st.sampled_from([-100, 0, 100]))
    def arrive(self, number: int, seed: int, priority: int) -> None:
        self.arrivals += 1
        model = self.model(number)
        request = random_request(random.Random(seed), model.scheduler.kv.model, self.arrivals, self.world.now, 80)
        model.submit(replace(request, qos=replace(request.qos, priority=priority)), self.world.now)

    @rule(number=st.integers(0, 1), seed=st.integers(0, 10_000), copies=st.integers(2, 4))
    def arrive_together(self, number: int, seed: int, copies: int) -> None:
        """Several choices of one prompt."""
        self.arrivals += 1
        model = self.model(number)
        request = random_request(random.Random(seed), model.scheduler.kv.model, self.arrivals, self.world.now, 80)
        plain = replace(request, qos=Qos(), continuation=replace(request.continuation, emitted=()))
        for choice in range(copies):
            model.submit(replace(plain, id=f"{plain.id}.{choice}"), self.world.now)

    @precondition(lambda self: any(model.open for model in self.world.models))
    @rule(pick=st.integers(0, 100), again=st.booleans())
    def abort_or_redispatch(self, pick: int, again: bool) -> None:
        open_ = [(model, name) for model in self.world.models for name in sorted(model.open)]
        model, name = open_[pick % len(open_)]
        if again:
            redispatch(model, name, self.world.now)
        else:
            model.abort(name)

    @rule(seconds=st.sampled_from([0.1, 5.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(number=st.integers(0, 1), times=st.integers(1, 8))
    def steps(self, number: int, times: int) -> None:
        for _ in range(times):
            self.world.step(self.model(number))

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain(5000)
            self.world.check_empty()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=25, stateful_step_count=30, phases=(Phase.explicit, Phase.generate))
