"""One step before the first request: it measures the workspace and lets libraries make their one-time decisions."""

from __future__ import annotations

from inference_stack.core.request import SamplingParams
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


def warm_up(runner: ModelRunner, model: str, groups: int) -> None:
    """Run a three-token step in block 0 of every group, which no request owns yet."""
    new = NewSlot(slot=0, request_id="warm-up", tokens=(0, 0, 0), prompt_len=3, computed=0, params=EVERYTHING, seed=0)
    blocks = tuple(BlockDelta(slots=ints([0]), index=ints([0]), blocks=ints([0])) for _ in range(groups))
    plan = StepPlan(
        step=0,
        model=model,
        slots=ints([0]),
        start=ints([0]),
        num_tokens=ints([3]),
        samples=ints([1]),
        new=(new,),
        blocks=blocks,
        released=(0,),
    )
    runner.launch(plan).wait()
