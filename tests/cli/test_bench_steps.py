"""Step samples of an engine: sizes and times noted in passing, and loads that repeat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from inference_stack.cli.bench.steps import Planned, Watched, chats, collect_steps
from inference_stack.cli.main import app
from inference_stack.config.tree import Config, EngineConfig, ModelEntry, NodeConfig
from inference_stack.core.errors import InferenceError
from inference_stack.core.step import StepPlan, StepResult, ints
from inference_stack.simulator.cost import cost_from
from inference_stack.simulator.cost.samples import StepSample, read_samples

LOAD = (Planned(0, 40, 3), Planned(0, 5, 4), Planned(2, 9, 2))


class Done:
    def wait(self) -> StepResult:
        return StepResult(step=1, model="m", tokens=ints([[1], [2]]), counts=ints([1, 1]), seconds=0.25)


class Instant:
    def launch(self, plan: StepPlan) -> Done:
        return Done()


def configured(model: Path, count: int = 1) -> Config:
    engine = EngineConfig(kv_memory="16MiB", max_batch_tokens=32, max_running=4, max_model_len=128)
    models = tuple(ModelEntry(model=str(model), name=f"demo-{number}") for number in range(count))
    return Config(models=models, engine=engine, node=NodeConfig(threads=1))


def test_a_watched_runner_notes_each_step_when_its_result_is_taken() -> None:
    watched = Watched(Instant())
    two = ints([0, 1])
    plan = StepPlan(step=1, model="m", slots=two, start=ints([4, 0]), num_tokens=ints([1, 3]), samples=ints([1, 1]))
    step = watched.launch(plan)
    assert watched.samples == []
    assert np.array_equal(step.wait().counts, [1, 1])
    assert watched.samples == [StepSample(4, 2, 8, 5 + 6, 0.25)]


@pytest.mark.model
def test_every_round_repeats_the_sizes_of_the_first(demo_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    samples = collect_steps(configured(demo_model), file, loads=lambda *_: iter([LOAD] * 2), seconds=0, rounds=3)
    sizes = [one.sizes for one in samples]
    each = len(sizes) // 3
    assert sizes == 3 * sizes[:each]
    assert sum(tokens for tokens, *_ in sizes[:each]) == sum(one.prompt + one.output - 1 for one in LOAD)
    assert read_samples(file) == samples


@pytest.mark.model
def test_a_load_that_the_engine_fails_is_no_measurement(demo_model: Path) -> None:
    too_long = (Planned(0, 500, 4),)
    with pytest.raises(InferenceError, match="context length"):
        collect_steps(configured(demo_model), loads=lambda *_: iter([too_long] * 2), seconds=0, rounds=1)


@pytest.mark.model
def test_there_are_enough_distinct_steps_however_short_the_time(demo_model: Path) -> None:
    samples = collect_steps(configured(demo_model), loads=chats, seconds=0, rounds=1, least=200)
    assert len({one.sizes for one in samples}) >= 200


@pytest.mark.model
def test_steps_of_two_models_are_not_mixed(demo_model: Path) -> None:
    with pytest.raises(InferenceError, match="one model at a time"):
        collect_steps(configured(demo_model, count=2), seconds=0)


@pytest.mark.model
def test_the_command_writes_samples_that_a_simulation_reads(demo_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "steps.jsonl"
    words = ["bench", "steps", str(demo_model), "--output", str(out), "--seconds", "2", "--max-model-len", "256"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0 and "a model fitted to four fifths" in done.output
    cost = cost_from({"samples": str(out)})
    assert 0 < cost.step_seconds(1, 1, 64, 64) < cost.step_seconds(128, 1, 128, 128 * 64)
