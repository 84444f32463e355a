"""Recorded steps: a replay gives what calling op by op gives, for any sizes, and threads leave when they are no longer needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from inference_stack.ops.api import Linear, StepInputs
from inference_stack.ops.cpu.native import extension
from inference_stack.ops.facade import BoundOps
from tests.ops.parts import make_ops, native_sets
from tests.ops.test_registry import OneLayer

pytestmark = pytest.mark.skipif(not native_sets(), reason=str(extension()))
TOKENS, ROWS, SAMPLES = 40, 4, 4


def largest(step: StepInputs) -> StepInputs:
    """The step's inputs in columns for the largest step; `fill` puts another step's numbers in."""

    def column(length: int) -> Tensor:
        return torch.zeros(length, dtype=torch.int64)

    tables = tuple(
        replace(
            table, entry_RB=torch.zeros(ROWS, 8, dtype=torch.int64), entry_T=column(TOKENS), offset_T=column(TOKENS)
        )
        for table in step.tables
    )
    return replace(
        step,
        tokens_T=column(TOKENS),
        positions_T=column(TOKENS),
        row_T=column(TOKENS),
        context_R=column(ROWS),
        cu_q_X=column(ROWS + 1),
        tables=tables,
        sampled_S=column(SAMPLES),
    )


def fill(into: StepInputs, step: StepInputs) -> None:
    for name in ("tokens_T", "positions_T", "row_T", "context_R", "cu_q_X", "sampled_S"):
        value = getattr(step, name)
        getattr(into, name)[: len(value)] = value
    for to, table in zip(into.tables, step.tables, strict=True):
        to.entry_RB[: table.entry_RB.shape[0], : table.entry_RB.shape[1]] = table.entry_RB
        to.entry_T[: len(table.entry_T)] = table.entry_T
        to.offset_T[: len(table.offset_T)] = table.offset_T


@pytest.mark.parametrize("kernels", native_sets())
def test_a_replay_gives_what_the_ops_give_one_by_one(kernels: str) -> None:
    model, ops = OneLayer(), make_ops(TOKENS, SAMPLES, kernels)
    inputs = largest(model.step(1))
    recorder = ops.recorder
    assert recorder is not None
    # Measured with the recording's outputs held, as an engine does.
    with recorder.record(TOKENS, SAMPLES) as _:
        held = model.logits(ops, inputs)
    model.logits(ops, model.step(1))
    del held
    ops.workspace.seal()
    with recorder.record(TOKENS, SAMPLES) as finish:
        logits = ops.linear(ops.select(model.forward(ops, inputs), inputs.sampled_S), model.table)
        recording = finish()
    for tokens in (1, 17, 40, 3):
        step = replace(model.step(tokens), sampled_S=torch.tensor([tokens - 1, 0]))
        fill(inputs, step)
        recording.run(tokens, 1, 2)
        eager = make_ops(TOKENS, SAMPLES, kernels)
        expected = eager.linear(eager.select(model.forward(eager, step), step.sampled_S), model.table)
        assert torch.equal(logits[:2], expected)


def test_profiling_names_every_operation_and_changes_nothing() -> None:
    ops = make_ops(4, 4, native_sets()[0])
    recorder = ops.recorder
    assert recorder is not None
    x, weight = torch.randn(4, 32), Linear(weight=torch.randn(16, 32))
    ops.prepare(weight)
    ops.linear(ops.rmsnorm(x, torch.ones(32), 1e-5), weight)
    ops.workspace.seal()
    norm = torch.ones(32)
    with recorder.record(4, 4) as finish:
        y = ops.linear(ops.rmsnorm(x, norm, 1e-5), weight)
        recording = finish()
    recording.run(4, 1, 0)
    plain = y.clone()
    recording.start_profile()
    recording.run(4, 1, 0)
    timings = recording.stop_profile()
    assert [timing.name for timing in timings] == ["rmsnorm", "linear"]
    assert all(timing.seconds >= 0 for timing in timings)
    assert torch.equal(y, plain)


def test_ops_of_different_makers_cannot_be_recorded_together() -> None:
    assert make_ops(kernels="torch").recorder is None


def test_many_threads_on_few_cores_agree_step_after_step() -> None:
    def results(ops: BoundOps) -> Tensor:
        weight = Linear(weight=weight_NK)
        return torch.stack([ops.linear(x, weight).clone() for x in inputs])

    weight_NK = torch.randn(200, 64)
    inputs = [torch.randn(1 + step % 9, 64) for step in range(200)]
    inputs = [torch.nn.functional.pad(x, (0, 0, 0, 9 - len(x))) for x in inputs]
    name = native_sets()[0]
    assert torch.equal(results(make_ops(16, 4, name, threads=1)), results(make_ops(16, 4, name, threads=7)))
