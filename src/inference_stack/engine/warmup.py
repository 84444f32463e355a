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


def _step(runner: ModelRunner, model: str, groups: int, tokens: int, params: SamplingParams) -> float:
    """One step of one row; its seconds."""
    new = NewSlot(
        slot=0, request_id="warm-up", tokens=(0,) * tokens, prompt_len=tokens, computed=0, params=params, seed=0
    )
    index = ints(range(-(-tokens // BLOCK_TOKENS)))
    delta = BlockDelta(slots=ints([0] * len(index)), index=index, blocks=index)
    plan = StepPlan(
        step=0,
        model=model,
        slots=ints([0]),
        start=ints([0]),
        num_tokens=ints([tokens]),
        samples=ints([1]),
        new=(new,),
        blocks=(delta,) * groups,
        released=(0,),
    )
    return runner.launch(plan).wait().seconds


def warm_up(runner: ModelRunner, model: str, groups: int) -> None:
    """One small step that takes every path, so that the workspace sees all it has to hold."""
    _step(runner, model, groups, 3, EVERYTHING)


def time_steps(runner: ModelRunner, model: str, groups: int, many: int) -> StepTimeModel:
    """A first guess at the step-time model, from a step of one token and one of `many`. Each is taken twice: the first one may
    compile kernels."""
    one = min(_step(runner, model, groups, 1, PLAIN) for _ in range(2))
    most = min(_step(runner, model, groups, many, PLAIN) for _ in range(2))
    per_token = max(most - one, 0.0) / max(many - 1, 1)
    return StepTimeModel(base=max(one - per_token, 0.0), per_token=per_token)
