"""Decode steps as graphs, with Triton's ops in its interpreter: the bits of steps op by op, at addresses that stay, and nothing on
the way that reads the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_stack.engine.core import EngineCore
from inference_stack.engine.graphs import GraphedStep, sizes
from inference_stack.engine.runner import ModelRunner
from inference_stack.engine.streams import HostStreams
from tests.engine.emulated import ReadsTheDevice, emulated, no_reads
from tests.engine.house import Answer, Engine, engine, prompt, request

PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0, "logprobs": None},
    {"temperature": 0.9, "top_k": 9, "top_p": 0.8, "min_p": 0.01, "logprobs": 2},
    {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2, "logit_bias": {5: 4.0}},
]


def served(path: Path, **settings: Any) -> Engine:
    """An engine with Triton's ops on an emulated accelerator."""
    return engine(path, device=emulated(), kernels="triton", kv_memory="1MiB", max_running=4, **settings)


def runner_of(core: EngineCore) -> ModelRunner:
    (instance,) = core.instances
    assert isinstance(instance.runner, ModelRunner)
    return instance.runner


def graphs_of(core: EngineCore) -> GraphedStep:
    step = runner_of(core).step
    assert isinstance(step, GraphedStep)
    return step


def answers(one: Engine, model: str) -> list[Answer]:
    return one.run(
        request(prompt(5 + 12 * number, number), f"r{number}", model, seed=number, max_tokens=4, **params)
        for number, params in enumerate(PARAMS)
    )


@pytest.mark.parametrize("family", ["llama", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_recorded_steps_give_the_bits_of_steps_op_by_op(tiny_models: dict[str, Path], family: str) -> None:
    recorded, plain = served(tiny_models[family]), served(tiny_models[family], recorded_steps=False)
    assert answers(recorded, family) == answers(plain, family)
    assert graphs_of(recorded.core).recorded


def test_a_row_alone_has_the_bits_of_the_row_among_others(tiny_models: dict[str, Path]) -> None:
    one = served(tiny_models["llama"], prefix_cache=False)
    asked = [request(prompt(9 + 7 * n, n), f"r{n}", seed=n, max_tokens=3, logprobs=2) for n in range(3)]
    assert one.run(asked) == [one.alone(single) for single in asked]


def test_batches_are_filled_up_to_the_next_size(tiny_models: dict[str, Path]) -> None:
    one = served(tiny_models["llama"])
    one.run(request(prompt(6, n), f"r{n}", max_tokens=3, logprobs=None) for n in range(3))
    assert 4 in graphs_of(one.core).recorded
    assert 3 not in graphs_of(one.core).recorded


def test_a_step_that_is_recorded_has_no_time(tiny_models: dict[str, Path]) -> None:
    one, seconds = served(tiny_models["llama"]), list[float]()
    runner = runner_of(one.core)
    finish = runner._finish

    def noted(*args: Any) -> Any:
        result = finish(*args)
        seconds.append(result.seconds)
        return result

    runner._finish = noted  # type: ignore[method-assign]
    one.run(request(prompt(6, n), f"r{n}", max_tokens=4, logprobs=None) for n in range(2))
    assert seconds.count(0.0) == 1  # two rows, for the first time


def test_what_cannot_be_recorded_runs_op_by_op(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: HostStreams, work: object) -> Any:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(HostStreams, "record", full)
    one = served(tiny_models["llama"], prefix_cache=False)
    asked = request(prompt(6), max_tokens=3, logprobs=None)
    assert one.alone(asked) == one.alone(asked)
    assert graphs_of(one.core).recorded == ()
    assert "no memory" in caplog.text


def test_results_stay_where_they_are(tiny_models: dict[str, Path]) -> None:
    one = served(tiny_models["llama"])
    one.alone(request(prompt(6), max_tokens=3, logprobs=None))
    recorded = graphs_of(one.core)._recorded[1]
    before = [part.data_ptr() for part in (recorded.columns, recorded.hidden_TD, recorded.logits_SV)]
    one.alone(request(prompt(8, 1), max_tokens=3, logprobs=None))
    again = graphs_of(one.core)._recorded[1]
    assert [part.data_ptr() for part in (again.columns, again.hidden_TD, again.logits_SV)] == before


@pytest.mark.slow
def test_rows_that_fill_up_touch_no_block_of_a_request(tiny_models: dict[str, Path]) -> None:
    one = served(tiny_models["llama"], prefix_cache=False)
    alone = [one.alone(request(prompt(17, n), "a", seed=n, max_tokens=5)) for n in range(3)]
    together = one.run(request(prompt(17, n), f"r{n}", seed=n, max_tokens=5) for n in range(3))
    assert together == alone


def _guarded(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on a step that reads the device while it is queued raises; counts the steps."""
    runner, steps = runner_of(core), []
    queue: Callable[..., Any] = runner._queue

    def guarded(plan: Any) -> Any:
        steps.append(plan.step)
        with no_reads():
            return queue(plan)

    monkeypatch.setattr(runner, "_queue", guarded)
    return steps


def test_no_step_reads_the_device(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    one = served(tiny_models["llama"])
    answers(one, "llama")
    steps = _guarded(one.core, monkeypatch)
    answers(one, "llama")
    assert len(steps) >= 4


def test_the_guard_catches_an_op_that_reads(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine(tiny_models["llama"], device=emulated(), kernels="torch")
    _guarded(one.core, monkeypatch)
    with pytest.raises(ReadsTheDevice):
        one.alone(request(prompt(6), max_tokens=3))


@pytest.mark.parametrize(("rows", "expected"), [(1, (1,)), (3, (1, 2, 3)), (20, (1, 2, 4, 8, 16, 20))])
def test_sizes_are_a_ladder_up_to_the_most_rows(rows: int, expected: tuple[int, ...]) -> None:
    assert sizes(rows) == expected


def test_padding_is_never_more_than_half_of_a_batch() -> None:
    ladder = sizes(256)
    assert all(next(size for size in ladder if size >= rows) <= 2 * rows for rows in range(1, 257))
