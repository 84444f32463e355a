"""Mixtures of experts in the engine: what transformers computes, and bits that depend on neither company nor chunks nor history."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_stack.core.request import Request
from inference_stack.engine.runner import ModelRunner
from inference_stack.engine.steps import EagerStep, RecordedStep
from tests.engine.house import Answer, engine, prompt, request, save_tiny
from tests.models import tiny
from tests.ops.parts import native_sets

FAMILIES = ["mixtral", "qwen3-moe-mixed", "gpt-oss"]
LENGTHS = [1, 16, 33, 70]


def requests(family: str) -> list[Request]:
    return [
        request(prompt(length, salt), f"r{salt}", family, seed=salt, temperature=float(salt % 2))
        for salt, length in enumerate(LENGTHS)
    ]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(family, tmp_path_factory.mktemp("models") / family)


@pytest.fixture(scope="module")
def alone(model: Path, family: str) -> list[Answer]:
    """What each request gets by itself, with nothing cached."""
    single = engine(model, prefix_cache=False)
    return [single.alone(one) for one in requests(family)]


def test_greedy_tokens_equal_transformers(model: Path, family: str) -> None:
    known = prompt(45)
    answer = engine(model).alone(request(known, model=family, temperature=0.0, max_tokens=8))
    assert answer.tokens == tiny.oracle_greedy(tiny.make(family), known, 8)


@pytest.mark.parametrize("budget", [5, 64])
def test_company_and_chunks_do_not_matter(model: Path, family: str, alone: list[Answer], budget: int) -> None:
    together = engine(model, max_batch_tokens=budget).run(requests(family))
    assert [(a.tokens, a.logprobs) for a in together] == [(a.tokens, a.logprobs) for a in alone]


def test_a_continuation_goes_on_as_the_undisturbed_run(model: Path, family: str, alone: list[Answer]) -> None:
    other = engine(model)
    for salt, (length, expected) in enumerate(zip(LENGTHS, alone, strict=True)):
        again = request(
            prompt(length, salt), "c", family, seed=salt, emitted=expected.tokens[:5], temperature=float(salt % 2)
        )
        resumed = other.alone(again)
        assert (resumed.tokens, resumed.logprobs) == (expected.tokens[5:], expected.logprobs[5:])


@pytest.mark.skipif(not native_sets(), reason="torch's ops cannot be recorded")
def test_only_models_without_experts_are_recorded(model: Path, family: str, tmp_path: Path) -> None:
    both = engine(save_tiny("llama", tmp_path / "llama"), model)
    runners = [one.runner for one in both.core.instances]
    steps = [one.step for one in runners if isinstance(one, ModelRunner)]
    assert [type(step) for step in steps] == [RecordedStep, EagerStep]
    assert len(both.run([request(prompt(9), "a", "llama"), request(prompt(9), "b", family)])) == 2


def test_ids_of_models_without_experts_do_not_name_what_runs_experts(tmp_path: Path, model: Path) -> None:
    ready = engine(save_tiny("llama", tmp_path / "llama"), model).ready
    assert len({info.numerics_id for info in ready.models}) == 2
