"""Gemma 3, text (arXiv:2503.19786): mostly windowed layers, every sixth one full, each kind with its own rope.

x  = embed(tokens) · sqrt(D)
x += norm(attention(norm(x)))     for each layer; q and k heads are normed too
x += norm(mlp(norm(x)))
logits = head(norm(x))            every norm scales by 1 + w; the 1 is added when weights are loaded
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.models import layers
from inference_stack.models.config import ModelConfig
from inference_stack.models.layers import Attention, GatedMlp, HeadNorms
from inference_stack.models.weights import Weights
from inference_stack.ops.api import Ops, Rope, StepInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One decoder layer, with norms before and after both halves."""

    input_norm_D: Tensor
    attention: Attention
    attention_norm_D: Tensor
    mlp_norm_D: Tensor
    mlp: GatedMlp
    output_norm_D: Tensor


class Gemma3:
    """A Gemma 3 text decoder with its weights, for sequences of up to `max_positions` tokens."""

    def __init__(self, config: ModelConfig, weights: Weights, max_positions: int) -> None:
        self.config = config
        self.vocab_size = config.vocab_size
        self.max_positions = max_positions
        self.table = layers.read_table(weights, config)
        # The original rounds the scale to the table's type.
        self.embed_scale = torch.tensor(config.hidden_size**0.5, dtype=weights.dtype_of(layers.TABLE)).item()
        ropes = layers.read_ropes(config, max_positions, weights.device)
        self.blocks = tuple(self._block(weights, f"model.layers.{i}", rope) for i, rope in enumerate(ropes))
        self.norm_D = weights.norm("model.norm.weight", config.hidden_size)
        self.head = layers.read_head(weights, config, self.table)

    def _block(self, weights: Weights, prefix: str, rope: Rope) -> Block:
        config, width, bias = self.config, self.config.hidden_size, self.config.attention_bias
        norms = HeadNorms(
            q_E=weights.norm(f"{prefix}.self_attn.q_norm.weight", config.head_dim),
            k_E=weights.norm(f"{prefix}.self_attn.k_norm.weight", config.head_dim),
        )
        return Block(
            input_norm_D=weights.norm(f"{prefix}.input_layernorm.weight", width),
            attention=layers.read_attention(weights, prefix, config, rope, qkv_bias=bias, out_bias=bias, norms=norms),
            attention_norm_D=weights.norm(f"{prefix}.post_attention_layernorm.weight", width),
            mlp_norm_D=weights.norm(f"{prefix}.pre_feedforward_layernorm.weight", width),
            mlp=layers.read_mlp(weights, prefix, config),
            output_norm_D=weights.norm(f"{prefix}.post_feedforward_layernorm.weight", width),
        )

    def kv_groups(self, dtype: str) -> tuple[KvGroupSpec, ...]:
        """Two KV groups: full and windowed layers."""
        return layers.kv_groups(self.config, dtype)

    def forward(self, ops: Ops, step: StepInputs) -> Tensor:
        """Hidden states after the final norm, hidden_TD."""
        eps = self.config.norm_eps
        residual_TD = ops.embed(step.tokens_T, self.table, self.embed_scale)
        x_TD = ops.rmsnorm(residual_TD, self.blocks[0].input_norm_D, eps)
        next_norms = [block.input_norm_D for block in self.blocks[1:]] + [self.norm_D]
        for block, kv, next_norm_D in zip(self.blocks, step.kv, next_norms, strict=True):
            x_TD = ops.rmsnorm(block.attention(ops, x_TD, kv, step), block.attention_norm_D, eps)
            x_TD, residual_TD = ops.add_rmsnorm(x_TD, residual_TD, block.mlp_norm_D, eps)
            x_TD = ops.rmsnorm(block.mlp(ops, x_TD), block.output_norm_D, eps)
            x_TD, residual_TD = ops.add_rmsnorm(x_TD, residual_TD, next_norm_D, eps)
        return x_TD

    def logits(self, ops: Ops, hidden_SD: Tensor) -> Tensor:
        """logits_SV."""
        return ops.linear(hidden_SD, self.head)
