"""Qwen3 with mixtures of experts (arXiv:2505.09388): Qwen3 whose layers have experts, except those that the configuration names."""

from __future__ import annotations

from inference_stack.models.layers import Mlp
from inference_stack.models.moe import Names, read_experts
from inference_stack.models.qwen3 import Qwen3
from inference_stack.models.weights import Weights


class Qwen3Moe(Qwen3):
    """A Qwen3 decoder with experts."""

    def mlp(self, weights: Weights, prefix: str, layer: int) -> Mlp:
        """Experts, or in some layers a plain MLP."""
        moe = self.config.experts
        if moe is None or layer in moe.dense_layers:
            return super().mlp(weights, prefix, layer)
        return read_experts(weights, f"{prefix}.mlp", self.config, Names())
