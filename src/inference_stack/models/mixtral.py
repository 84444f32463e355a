"""Mixtral (arXiv:2401.04088): Mistral with a mixture of experts for an MLP."""

from __future__ import annotations

from inference_stack.models.llama import Llama
from inference_stack.models.moe import ExpertMlp, Names, read_experts
from inference_stack.models.weights import Weights

NAMES = Names(gate="w1", up="w3", down="w2")


class Mixtral(Llama):
    """A Mixtral decoder."""

    def mlp(self, weights: Weights, prefix: str, layer: int) -> ExpertMlp:
        """Experts, in every layer."""
        block = f"{prefix}.block_sparse_moe"
        return read_experts(
            weights, block if weights.has(f"{block}.gate.weight") else f"{prefix}.mlp", self.config, NAMES
        )
