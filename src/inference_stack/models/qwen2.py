"""Qwen2 and Qwen2.5 (arXiv:2407.10671): Llama with biases on q, k and v, and windows on the upper layers where
configured.
"""

from __future__ import annotations

from inference_stack.models import layers
from inference_stack.models.layers import Attention
from inference_stack.models.llama import Llama
from inference_stack.models.weights import Weights
from inference_stack.ops.api import Rope


class Qwen2(Llama):
    """A Qwen2 decoder."""

    def attention(self, weights: Weights, prefix: str, rope: Rope) -> Attention:
        """Biases on q, k and v but not on the output."""
        return layers.read_attention(weights, prefix, self.config, rope, qkv_bias=True, out_bias=False)
