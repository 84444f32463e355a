"""Qwen3 (arXiv:2505.09388): Llama whose query and key heads are each RMS-normed before they are rotated."""

from __future__ import annotations

from inference_stack.models import layers
from inference_stack.models.layers import Attention, HeadNorms
from inference_stack.models.llama import Llama
from inference_stack.models.weights import Weights
from inference_stack.ops.api import Rope


class Qwen3(Llama):
    """A Qwen3 decoder."""

    def attention(self, weights: Weights, prefix: str, rope: Rope) -> Attention:
        """Norms of [head_dim] on q and k."""
        config, width = self.config, self.config.head_dim
        norms = HeadNorms(
            q_E=weights.tensor(f"{prefix}.self_attn.q_norm.weight", width),
            k_E=weights.tensor(f"{prefix}.self_attn.k_norm.weight", width),
        )
        bias = config.attention_bias
        return layers.read_attention(weights, prefix, config, rope, qkv_bias=bias, out_bias=bias, norms=norms)
