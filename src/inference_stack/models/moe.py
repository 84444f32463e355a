"""The MLP of mixtures of experts (arXiv:2101.03961): a router, and the gated MLPs that it chooses among.

Shared by all architectures that have one; knows how checkpoints name its tensors, and calls `ops` only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inference_stack.models.config import ExpertsConfig, ModelConfig
from inference_stack.models.stacked import Fp4, PerExpert, Stack, Stacks, Turned, Whole
from inference_stack.models.weights import Weights
from inference_stack.ops.api import Experts, Linear, Ops


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertMlp:
    """Σ weight · expert(x) over the experts that the router gives most to."""

    router: Linear
    experts: Experts

    def __call__(self, ops: Ops, x_TD: Tensor) -> Tensor:
        return ops.experts(x_TD, ops.linear(x_TD, self.router), self.experts)


@dataclass(frozen=True, slots=True)
class Names:
    """What a checkpoint calls the gate, up and down projections of one expert."""

    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


def read_experts(weights: Weights, prefix: str, config: ModelConfig, names: Names) -> ExpertMlp:
    """The experts under `prefix`: one tensor for each, or all of a side stacked in one."""
    moe, width = _of(config), config.hidden_size
    router = weights.linear([f"{prefix}.gate"], [moe.count], width)
    stacks = Stacks(
        gate_up=_side(weights, prefix, moe, [names.gate, names.up], (moe.width, width), "gate_up_proj"),
        down=_side(weights, prefix, moe, [names.down], (width, moe.width), "down_proj"),
    )
    return ExpertMlp(router=router, experts=weights.experts(_empty(config, moe), stacks))


def _side(
    weights: Weights, prefix: str, moe: ExpertsConfig, names: list[str], shape: tuple[int, int], stacked: str
) -> Stack:
    rows, depth = shape
    if weights.has(whole := f"{prefix}.experts.{stacked}"):
        return Whole(weights.part(whole, moe.count, rows * len(names), depth))
    return PerExpert(
        tuple(
            tuple(weights.part(f"{prefix}.experts.{expert}.{name}.weight", rows, depth) for name in names)
            for expert in range(moe.count)
        )
    )


def read_turned_experts(weights: Weights, prefix: str, config: ModelConfig) -> ExpertMlp:
    """Experts with biases, inputs before outputs, gate and up rows alternating; dense or MXFP4."""
    moe, width = _of(config), config.hidden_size
    router = weights.linear([f"{prefix}.router"], [moe.count], width, bias=True)
    name = f"{prefix}.experts"
    stacks = Stacks(
        gate_up=_turned(weights, f"{name}.gate_up_proj", (moe.count, 2 * moe.width, width), interleaved=True),
        down=_turned(weights, f"{name}.down_proj", (moe.count, width, moe.width), interleaved=False),
        gate_up_bias=weights.part(f"{name}.gate_up_proj_bias", moe.count, 2 * moe.width),
        down_bias=weights.part(f"{name}.down_proj_bias", moe.count, width),
        interleaved=True,
    )
    return ExpertMlp(router=router, experts=weights.experts(_empty(config, moe), stacks))


def _turned(weights: Weights, name: str, shape: tuple[int, int, int], interleaved: bool) -> Stack:
    experts, rows, depth = shape
    if weights.has(f"{name}_blocks"):
        blocks = weights.part(f"{name}_blocks", experts, rows, depth // 32, 16)
        return Fp4(blocks, weights.part(f"{name}_scales", experts, rows, depth // 32), interleaved)
    return Turned(weights.part(name, experts, depth, rows), interleaved)


def _of(config: ModelConfig) -> ExpertsConfig:
    if config.experts is None:
        raise ValueError(f"{config.architecture} needs a configuration of its experts")
    return config.experts


def _empty(config: ModelConfig, moe: ExpertsConfig) -> Experts:
    return Experts(
        gate_up=torch.empty(0),
        down=torch.empty(0),
        top_k=moe.chosen,
        normalised=moe.normalised,
        activation=config.activation if moe.clamp is None else "clamped_swiglu",
        alpha=1.0 if moe.clamp is None else moe.clamp[0],
        limit=0.0 if moe.clamp is None else moe.clamp[1],
    )
