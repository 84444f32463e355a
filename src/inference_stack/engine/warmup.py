"""Steps before the first request: they measure the workspace, let libraries make their one-time decisions, and time the model.

They run in the first blocks of every group, which no request owns yet.
"""

from __future__ import annotations

from inference_stack.core.request import BLOCK_TOKENS, SamplingParams
from inference_stack.core.stats import StepTimeModel
from inference_stack.core.step import BlockDelta, NewSlot, StepPlan, ints
from inference_stack.engine.runner import ModelRunner

EVERYTHING = SamplingParams(
    temperature=1.0,
    top_k=2,
    top_p=0.9,
    min_p=0.01,
    repetition_penalty=1.1,
    logit_bias={0: 1.0},
    logprobs=1,
    prompt_logprobs=1,
)
"""Parameters that make a step use every sampling path."""
PLAIN = SamplingParams(temperature=0.0)
TIMED_TOKENS = 64
"""On CPUs, where a full step would take a while."""


def _step(runner: ModelRunner, model: str, groups: int, tokens: int, params: SamplingParams, rows: int = 1) -> float:
    """One step of rows that have so many tokens each, all in the same blocks; its seconds."""
    new = tuple(
        NewSlot(
            slot=slot, request_id="warm-up", tokens=(0,) * tokens, prompt_len=tokens, computed=0, params=params, seed=0
        )
        for slot in range(rows)
    )
    blocks = -(-tokens // BLOCK_TOKENS)
    delta = BlockDelta(
        slots=ints([slot for slot in range(rows) for _ in range(blocks)]),
        index=ints([*range(blocks)] * rows),
        blocks=ints([*range(blocks)] * rows),
    )
    plan = StepPlan(
        step=0,
        model=model,
        slots=ints(range(rows)),
        start=ints([0] * rows),
        num_tokens=ints([tokens] * rows),
        samples=ints([1] * rows),
        new=new,
        blocks=(delta,) * groups,
        released=tuple(range(rows)),
    )
    return runner.launch(plan).wait().seconds


def warm_up(runner: ModelRunner, model: str, groups: int) -> None:
    """One small step that takes every path, so that the workspace sees all it has to hold."""
    _step(runner, model, groups, 3, EVERYTHING)


def fill(runner: ModelRunner, model: str, groups: int, rows: int) -> None:
    """A decode step of `rows` rows on every path, which is the first that a device records: the memory of the largest recording
    serves all smaller ones."""
    _step(runner, model, groups, 1, EVERYTHING, rows)


def time_steps(runner: ModelRunner, model: str, groups: int, many: int) -> StepTimeModel:
    """A first guess at the step-time model, from a step of one token and one of `many`. Each is taken twice: the first one may
    compile kernels, or have no time."""
    one, most = (
        min((seconds for _ in range(2) if (seconds := _step(runner, model, groups, tokens, PLAIN)) > 0), default=0.0)
        for tokens in (1, many)
    )
    per_token = max(most - one, 0.0) / max(many - 1, 1)
    return StepTimeModel(base=max(one - per_token, 0.0), per_token=per_token)
