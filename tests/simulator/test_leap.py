"""Quiet stretches taken at once come to exactly what stepping comes to: every outcome, every time, all bookkeeping."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_stack.simulator.api import Run
from inference_stack.simulator.fleet import Fleet, FleetSpec
from tests.simulator.parts import spec, traffic


def both(asked: FleetSpec, until: float = float("inf")) -> tuple[Fleet, Fleet, Run, Run]:
    """The same fleet, leaping and stepping, with what each found."""
    leaping, stepping = Fleet(asked), Fleet(replace(asked, leaping=False))
    return leaping, stepping, leaping.run(until), stepping.run(until)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    depth=st.integers(0, 2),
    rate=st.sampled_from((0.3, 2.0, 20.0)),
    blocks=st.sampled_from((40, 400)),
    deadlines=st.booleans(),
    prefix_cache=st.booleans(),
)
def test_leaping_and_stepping_find_the_same(
    seed: int, depth: int, rate: float, blocks: int, deadlines: bool, prefix_cache: bool
) -> None:
    workload = traffic(25, seed, rate, deadlines=deadlines)
    asked = spec(workload, nodes=2, blocks=blocks, depth=depth, prefix_cache=prefix_cache)
    _, _, leapt, stepped = both(asked)
    assert [replace_times(one) for one in leapt.outcomes] == [replace_times(one) for one in stepped.outcomes]
    assert (leapt.steps, leapt.preemptions) == (stepped.steps, stepped.preemptions)
    assert leapt.itl_counts.sum() == stepped.itl_counts.sum()


def replace_times(outcome: object) -> object:
    """Times to the nanosecond: a sum of durations may differ in its last bit from the durations one by one."""
    rounded = {
        name: None if (value := getattr(outcome, name)) is None else round(value, 9)
        for name in ("arrived", "first", "ended", "queued", "longest_gap")
    }
    return replace(outcome, **rounded)  # type: ignore[type-var]


@pytest.mark.parametrize("until", [0.7, 1.3, 2.9, 6.1])
def test_bookkeeping_is_the_same_at_any_moment(until: float) -> None:
    leaping, stepping, _, _ = both(spec(traffic(20, seed=5, rate=4.0)), until)
    for one, other in zip(leaping.nodes, stepping.nodes, strict=True):
        one.instance.settle()
        mine, theirs = one.instance.scheduler, other.instance.scheduler
        assert replace(mine.stats(), step_seconds=0, step_time=theirs.stats().step_time) == replace(
            theirs.stats(), step_seconds=0
        )
        assert mine.stats().step_time.predict(64, 8, 4096) == pytest.approx(
            theirs.stats().step_time.predict(64, 8, 4096)
        )
        mine.check()
        for column in ("computed", "known", "total", "capacity", "published", "recent"):
            assert np.array_equal(getattr(mine._state.table, column), getattr(theirs._state.table, column)), column


def test_a_leap_beyond_the_quiet_is_refused() -> None:
    fleet = Fleet(spec(traffic(3, seed=1, rate=50.0), nodes=1))
    fleet.run(until=1.0)
    scheduler = fleet.nodes[0].instance.scheduler
    quiet = scheduler.quiet_steps(1000)
    tokens = np.ones((len(scheduler.running_ids()), quiet + 1), np.int32)
    with pytest.raises(ValueError, match="not a quiet stretch"):
        scheduler.leap(tokens, [0.01] * (quiet + 1))
