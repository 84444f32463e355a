"""Llama (arXiv:2302.13971, arXiv:2407.21783), and what is the same but for its configuration: SmolLM2 and Mistral.

x  = embed(tokens)
x += attention(norm(x))     for each layer
x += mlp(norm(x))
logits = head(norm(x))
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.models import layers
from inference_stack.models.config import ModelConfig
from inference_stack.models.layers import Attention, Mlp
from inference_stack.models.weights import Weights
from inference_stack.ops.api import Ops, Rope, StepInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One decoder layer."""

    input_norm_D: Tensor
    attention: Attention
    mlp_norm_D: Tensor
    mlp: Mlp


class Llama:
    """A Llama decoder with its weights, for sequences of up to `max_positions` tokens."""

    def __init__(self, config: ModelConfig, weights: Weights, max_positions: int) -> None:
        self.config = config
        self.vocab_size = config.vocab_size
        self.max_positions = max_positions
        self.table = layers.read_table(weights, config)
        ropes = layers.read_ropes(config, max_positions, weights.device)
        self.blocks = tuple(self._block(weights, layer, rope) for layer, rope in enumerate(ropes))
        self.norm_D = weights.tensor("model.norm.weight", config.hidden_size)
        self.head = layers.read_head(weights, config, self.table)

    def _block(self, weights: Weights, layer: int, rope: Rope) -> Block:
        prefix, width = f"model.layers.{layer}", self.config.hidden_size
        return Block(
            input_norm_D=weights.tensor(f"{prefix}.input_layernorm.weight", width),
            attention=self.attention(weights, prefix, rope),
            mlp_norm_D=weights.tensor(f"{prefix}.post_attention_layernorm.weight", width),
            mlp=self.mlp(weights, prefix, layer),
        )

    def attention(self, weights: Weights, prefix: str, rope: Rope) -> Attention:
        """The attention of one layer. Relatives of Llama differ here."""
        bias = self.config.attention_bias
        return layers.read_attention(weights, prefix, self.config, rope, qkv_bias=bias, out_bias=bias)

    def mlp(self, weights: Weights, prefix: str, layer: int) -> Mlp:
        """The MLP of one layer. Relatives with experts differ here."""
        return layers.read_mlp(weights, prefix, self.config)

    def kv_groups(self, dtype: str) -> tuple[KvGroupSpec, ...]:
        """The KV groups: layers with and without an attention window."""
        return layers.kv_groups(self.config, dtype)

    def forward(self, ops: Ops, step: StepInputs) -> Tensor:
        """Hidden states after the final norm, hidden_TD."""
        eps = self.config.norm_eps
        residual_TD = ops.embed(step.tokens_T, self.table)
        x_TD = ops.rmsnorm(residual_TD, self.blocks[0].input_norm_D, eps)
        next_norms = [block.input_norm_D for block in self.blocks[1:]] + [self.norm_D]
        for block, kv, next_norm_D in zip(self.blocks, step.kv, next_norms, strict=True):
            x_TD = block.attention(ops, x_TD, kv, step)
            x_TD, residual_TD = ops.add_rmsnorm(x_TD, residual_TD, block.mlp_norm_D, eps)
            x_TD = block.mlp(ops, x_TD)
            x_TD, residual_TD = ops.add_rmsnorm(x_TD, residual_TD, next_norm_D, eps)
        return x_TD

    def logits(self, ops: Ops, hidden_SD: Tensor) -> Tensor:
        """logits_SV."""
        return ops.linear(hidden_SD, self.head)
