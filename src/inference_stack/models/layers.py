"""The parts that decoders share: attention, the gated MLP, and which layers share KV memory.

Each part holds its weights and says in a line or two what it computes, calling `ops` only. Shape letters as in `ops`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.models.config import ModelConfig
from inference_stack.models.rope import rope_tables
from inference_stack.models.weights import Weights
from inference_stack.ops.api import Activation, HeadSpec, KvLayer, Linear, Ops, Rope, StepInputs

TABLE = "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Grouped-query attention (arXiv:2305.13245) over paged KV."""

    qkv: Linear
    out: Linear
    heads: HeadSpec
    scale: float
    sinks_H: Tensor | None = None

    def __call__(self, ops: Ops, x_TD: Tensor, kv: KvLayer, step: StepInputs) -> Tensor:
        q_THE = ops.rope_store(ops.linear(x_TD, self.qkv), self.heads, kv, step)
        return ops.linear(ops.attend(q_THE, kv, step, self.scale, sinks_H=self.sinks_H), self.out)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedMlp:
    """down(act(gate(x)) · up(x)) (arXiv:2002.05202)."""

    gate_up: Linear
    down: Linear
    activation: Activation

    def __call__(self, ops: Ops, x_TD: Tensor) -> Tensor:
        return ops.linear(ops.act_mul(ops.linear(x_TD, self.gate_up), self.activation), self.down)


Mlp = Callable[[Ops, Tensor], Tensor]
"""What stands between a layer's second norm and its residual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadNorms:
    """RMS norm weights [E] of each query and key head, for architectures that have them."""

    q_E: Tensor
    k_E: Tensor


def read_attention(
    weights: Weights,
    prefix: str,
    config: ModelConfig,
    rope: Rope,
    *,
    qkv_bias: bool,
    out_bias: bool,
    norms: HeadNorms | None = None,
) -> Attention:
    """The attention of the layer called `prefix`, with q, k and v fused in this order."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    names = [f"{prefix}.self_attn.{part}_proj" for part in "qkv"]
    heads = HeadSpec(
        q_heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        rope=rope,
        q_norm_E=norms.q_E if norms else None,
        k_norm_E=norms.k_E if norms else None,
        norm_eps=config.norm_eps,
    )
    return Attention(
        qkv=weights.linear(names, [q, kv, kv], config.hidden_size, qkv_bias),
        out=weights.linear([f"{prefix}.self_attn.o_proj"], [config.hidden_size], q, out_bias),
        heads=heads,
        scale=config.attention_scale,
    )


def read_mlp(weights: Weights, prefix: str, config: ModelConfig) -> GatedMlp:
    """The MLP of the layer called `prefix`, with gate and up fused in this order."""
    inner, outer = config.intermediate_size, config.hidden_size
    names = [f"{prefix}.mlp.{part}_proj" for part in ("gate", "up")]
    return GatedMlp(
        gate_up=weights.linear(names, [inner, inner], outer, config.mlp_bias),
        down=weights.linear([f"{prefix}.mlp.down_proj"], [outer], inner, config.mlp_bias),
        activation=config.activation,
    )


def read_table(weights: Weights, config: ModelConfig) -> Linear:
    """The embedding table."""
    return weights.table(TABLE, config.vocab_size, config.hidden_size)


def read_head(weights: Weights, config: ModelConfig, table: Linear) -> Linear:
    """The output projection: the embedding table itself where they are tied."""
    if config.tied:
        return table
    return weights.linear(["lm_head"], [config.vocab_size], config.hidden_size)


def read_ropes(config: ModelConfig, positions: int, device: torch.device) -> tuple[Rope, ...]:
    """The rotary tables of each layer, shared by layers of one kind, computed on the CPU so that every device has the same."""
    full = _placed(rope_tables(config.rope, config.head_dim, positions), device)
    if config.window_rope is None:
        return (full,) * config.layers
    windowed = _placed(rope_tables(config.window_rope, config.head_dim, positions), device)
    return tuple(windowed if kind == "window" else full for kind in _kinds(config))


def _placed(rope: Rope, device: torch.device) -> Rope:
    return Rope(cos_PE=rope.cos_PE.to(device), sin_PE=rope.sin_PE.to(device))


def kv_groups(config: ModelConfig, dtype: str) -> tuple[KvGroupSpec, ...]:
    """One group of the full-attention layers and one of the windowed ones, leaving out a kind that has no layers."""
    groups = []
    for name, window in (("full", None), ("window", max((w for w in config.windows if w), default=None))):
        members = tuple(layer for layer, kind in enumerate(_kinds(config)) if kind == name)
        if members:
            groups.append(
                KvGroupSpec(
                    name=name,
                    layers=members,
                    kv_heads=config.kv_heads,
                    head_dim=config.head_dim,
                    dtype=dtype,
                    window=window,
                )
            )
    return tuple(groups)


def _kinds(config: ModelConfig) -> list[str]:
    return ["full" if window is None else "window" for window in config.windows]
