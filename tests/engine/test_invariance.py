"""A request's numbers do not depend on company, chunks, caches, preemption, lag or the process: bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_stack.core.request import Request
from tests.engine.house import Answer, engine, prompt, request

FAMILIES = ["llama", "gemma3"]
LENGTHS = [1, 2, 15, 16, 17, 31, 40, 63, 64, 65, 100, 130]


def requests(family: str) -> list[Request]:
    """Greedy and random ones, short and long."""
    return [
        request(prompt(length, salt), f"r{salt}", family, seed=salt, temperature=float(salt % 3))
        for salt, length in enumerate(LENGTHS)
    ]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def alone(tiny_models: dict[str, Path], family: str) -> list[Answer]:
    """What each request gets by itself, with nothing cached."""
    single = engine(tiny_models[family], prefix_cache=False)
    return [single.alone(one) for one in requests(family)]


def same(answers: list[Answer], expected: list[Answer]) -> bool:
    """Whether tokens and whole distributions are equal."""
    return [(a.tokens, a.logprobs, a.finish) for a in answers] == [(e.tokens, e.logprobs, e.finish) for e in expected]


@pytest.mark.parametrize("budget", [5, 32, 256])
def test_company_and_chunks_do_not_matter(
    tiny_models: dict[str, Path], family: str, alone: list[Answer], budget: int
) -> None:
    together = engine(tiny_models[family], max_batch_tokens=budget)
    assert same(together.run(requests(family)), alone)


def test_the_prefix_cache_does_not_matter(tiny_models: dict[str, Path], family: str, alone: list[Answer]) -> None:
    cached = engine(tiny_models[family])
    cached.run(requests(family))
    again = cached.run(requests(family))
    assert same(again, alone)
    assert sum(answer.cached or 0 for answer in again) > 100


def test_preemption_does_not_matter(tiny_models: dict[str, Path], family: str) -> None:
    growing = [request(prompt(20, n), f"r{n}", family, seed=n, max_tokens=70) for n in range(6)]
    roomy = engine(tiny_models[family], prefix_cache=False)
    expected = [roomy.alone(one) for one in growing]
    tight = engine(tiny_models[family], kv_memory={"llama": "120KiB", "gemma3": "200KiB"}[family])
    assert same(tight.run(growing), expected)
    assert tight.core.stats()[0].preemptions > 0


@pytest.mark.parametrize("depth", [1, 2])
def test_planning_ahead_does_not_matter(
    tiny_models: dict[str, Path], family: str, alone: list[Answer], depth: int
) -> None:
    ahead = engine(tiny_models[family], pipeline_depth=depth)
    assert same(ahead.run(requests(family)), alone)


@pytest.mark.parametrize("position", [0, 1, 5, 11])
def test_a_continuation_goes_on_as_the_undisturbed_run(
    tiny_models: dict[str, Path], family: str, alone: list[Answer], position: int
) -> None:
    other = engine(tiny_models[family])
    for salt, (length, expected) in enumerate(zip(LENGTHS, alone, strict=True)):
        done = expected.tokens[:position]
        resumed = other.alone(
            request(prompt(length, salt), "c", family, seed=salt, emitted=done, temperature=float(salt % 3))
        )
        assert (done + resumed.tokens, resumed.logprobs) == (expected.tokens, expected.logprobs[position:])


def test_neighbours_that_leave_do_not_matter(tiny_models: dict[str, Path], family: str, alone: list[Answer]) -> None:
    busy = engine(tiny_models[family])
    for number in range(3):
        busy.add(request(prompt(40, 50 + number), f"leaver{number}", family))

    def leave(step: int) -> None:
        if step in (1, 3, 6):
            busy.core.abort(f"leaver{(1, 3, 6).index(step)}")

    assert same(busy.run(requests(family), leave), alone)
