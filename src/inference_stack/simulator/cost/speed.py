"""What an instance believes of its own speed when it starts: a few steps timed, as the engine does it."""

from __future__ import annotations

from inference_stack.core.stats import StepTimeModel
from inference_stack.simulator.api import CostModel


def timed(cost: CostModel) -> StepTimeModel:
    """The linear model that fits a decode step, a prompt, a wide step and a long context."""
    small = cost.step_seconds(1, 1, 1, 1)
    long, wide = cost.step_seconds(257, 1, 257, 257 * 129), cost.step_seconds(33, 33, 33, 33)
    deep = cost.step_seconds(1, 1, 8193, 8193)
    per_token = max(0.0, (long - small) / 256)
    return StepTimeModel(
        base=max(0.0, small - per_token),
        per_token=per_token,
        per_row=max(0.0, (wide - small) / 32 - per_token),
        per_context=max(0.0, (deep - small) / 8192),
    )
