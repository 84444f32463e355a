"""gpt-oss (arXiv:2508.10925): layers with and without a window in turn, attention sinks, and experts with clamped gates.

Every attention head has a logit of its own, its sink, that takes a share of the softmax and gives no value; all projections
have biases. Experts come in MXFP4 or dense.
"""

from __future__ import annotations

from dataclasses import replace

from inference_stack.models.layers import Attention
from inference_stack.models.llama import Llama
from inference_stack.models.moe import ExpertMlp, read_turned_experts
from inference_stack.models.weights import Weights
from inference_stack.ops.api import Rope


class GptOss(Llama):
    """A gpt-oss decoder."""

    def attention(self, weights: Weights, prefix: str, rope: Rope) -> Attention:
        """Llama's, with a sink for each head."""
        sinks_H = weights.tensor(f"{prefix}.self_attn.sinks", self.config.heads)
        return replace(super().attention(weights, prefix, rope), sinks_H=sinks_H)

    def mlp(self, weights: Weights, prefix: str, layer: int) -> ExpertMlp:
        """Experts, in every layer."""
        return read_turned_experts(weights, f"{prefix}.mlp", self.config)
