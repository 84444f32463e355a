"""The scheduler under random traffic: no leak, no double use, no starvation, every token exactly once."""

from __future__ import annotations

import random

import pytest

from tests.scheduler.traffic import soak
from tests.scheduler.world import World, spec

FULL = (spec(),)
MIXED = (spec("full"), spec("window", window=24, layers=2))
WINDOWS = (spec("narrow", window=5), spec("wide", window=40, heads=2))

SHAPES = {
    "full, tiny": dict(groups=[FULL], slab_count=8),
    "full, one block per slab": dict(groups=[FULL], slab_count=12, blocks_per_slab=1),
    "full and window, tiny": dict(groups=[MIXED], slab_count=10),
    "windows only": dict(groups=[WINDOWS], slab_count=7),
    "two models": dict(groups=[FULL, MIXED], slab_count=12),
    "roomy": dict(groups=[FULL], slab_count=60, max_running=8),
}


@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_random_traffic(shape: str, lag: int) -> None:
    world = World.build(**SHAPES[shape], lag=lag, seed=lag, faults=0.002)
    soak(world, steps=200, seed=lag)


@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_random_traffic_with_drafts(shape: str, lag: int) -> None:
    world = World.build(**SHAPES[shape], lag=lag, seed=lag, max_drafts=4)
    soak(world, steps=150, seed=100 + lag)
    assert any(model.accepted for model in world.models)


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_rows_that_give_nothing_are_computed_again(lag: int) -> None:
    world = World.build([MIXED], slab_count=16, lag=lag, stalls=0.05)
    soak(world, steps=400, seed=lag)


def varied(seed: int) -> World:
    """Any shape, any lag, any size, with and without everything that can be switched."""
    rng = random.Random(seed)
    shape = dict(SHAPES[rng.choice(sorted(SHAPES))])
    shape["slab_count"] = max(4, shape["slab_count"] + rng.randint(-4, 4))
    shape["max_running"] = rng.choice((1, 2, 4, 8))
    return World.build(
        **shape,
        seed=seed,
        lag=rng.randrange(3),
        max_batch_tokens=rng.choice((3, 17, 40, 100)),
        prefix_cache=rng.random() < 0.8,
        max_drafts=rng.choice((0, 0, 3)),
        stalls=rng.choice((0.0, 0.02)),
        faults=rng.choice((0.0, 0.01)),
        itl_target=rng.choice((None, None, 0.02)),
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(8))
def test_a_hundred_thousand_steps(part: int) -> None:
    steps, seed = 0, part * 100_000
    while steps < 13_000:
        seed += 1
        world = varied(seed)
        soak(world, steps=300, seed=seed)
        steps += sum(model.scheduler.stats().steps for model in world.models)
