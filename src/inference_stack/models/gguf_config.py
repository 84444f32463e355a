"""`ModelConfig` from a GGUF file's metadata.

GGUF says some things by presence (biases, an output matrix) and some not at all (Gemma 3's layer pattern), as the
format's own readers assume them. Knows metadata keys; weights are read elsewhere.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from inference_stack.artifacts.gguf import GgufFile
from inference_stack.core.errors import unsupported_model
from inference_stack.models.config import (
    MAX_EXPERTS,
    MAX_LAYERS,
    MAX_POSITIONS,
    ExpertsConfig,
    ModelConfig,
    Raw,
    RopeConfig,
    RopeKind,
    check,
    effective,
    integer,
    number,
    positive,
)

GGUF_ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3",
    "qwen3moe": "qwen3_moe",
}
"""Ours, by the name in the file. A llama with experts is Mixtral."""
SCALINGS: dict[str, RopeKind] = {"none": "default", "linear": "linear", "yarn": "yarn"}
GEMMA3_LOCAL_THETA = 10000.0
GEMMA3_PATTERN = 6
GEMMA3_27B_LAYERS = 62
"""The one Gemma 3 whose attention scale is not derived from the head dimension."""


def config_from_gguf(gguf: GgufFile) -> ModelConfig:
    """The configuration of the model in a GGUF file. Raises `unsupported_model` naming what cannot be run."""
    architecture = gguf.metadata.get("general.architecture")
    if architecture not in GGUF_ARCHITECTURES:
        raise unsupported_model(
            f"Architecture not supported: {architecture!r} ({gguf.path}). Supported in GGUF files: "
            f"{', '.join(GGUF_ARCHITECTURES)}."
        )
    if integer(gguf.metadata, "split.count", 1) > 1:
        raise unsupported_model(f"{gguf.path} is one part of a split GGUF; merge the parts into one file first.")
    raw = _own_keys(gguf.metadata, architecture)
    experts = _experts(gguf, raw, architecture)
    hidden, heads = positive(raw, "embedding_length"), positive(raw, "attention.head_count")
    head_dim = positive(raw, "attention.key_length", hidden // heads)
    positions = positive(raw, "context_length", at_most=MAX_POSITIONS)
    rope = _rope(gguf, raw, head_dim, positions)
    config = ModelConfig(
        architecture="mixtral" if architecture == "llama" and experts else GGUF_ARCHITECTURES[architecture],
        vocab_size=_vocab_size(gguf),
        hidden_size=hidden,
        intermediate_size=positive(raw, "feed_forward_length"),
        heads=heads,
        kv_heads=positive(raw, "attention.head_count_kv", heads),
        head_dim=head_dim,
        windows=effective(_windows(raw, architecture), positions),
        max_positions=positions,
        norm_eps=number(raw, "attention.layer_norm_rms_epsilon"),
        rope=rope,
        window_rope=_window_rope(raw, architecture),
        attention_scale=_scale(raw, architecture, hidden // heads, head_dim),
        activation="gelu_tanh" if architecture == "gemma3" else "silu",
        tied="output.weight" not in gguf.tensors,
        attention_bias="blk.0.attn_q.bias" in gguf.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in gguf.tensors,
        eos_tokens=_eos(gguf.metadata),
        experts=experts,
    )
    check(config)
    return config


def _own_keys(metadata: Raw, architecture: str) -> dict[str, Any]:
    """The architecture's keys without their prefix."""
    prefix = f"{architecture}."
    return {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}


def _experts(gguf: GgufFile, raw: Raw, architecture: str) -> ExpertsConfig | None:
    """The experts of a file that has some. A layer without a router has none; weights of those chosen always sum to 1."""
    if not integer(raw, "expert_count", 0):
        return None
    if architecture not in ("llama", "qwen3moe"):
        raise unsupported_model(f"A {architecture} with {raw['expert_count']} experts is not supported.")
    if raw.get("expert_weights_norm") is False or number(raw, "expert_weights_scale", 1.0) not in (0.0, 1.0):
        raise unsupported_model("Weights of experts that do not sum to 1 are not supported in GGUF files.")
    layers = range(positive(raw, "block_count", at_most=MAX_LAYERS))
    dense = tuple(layer for layer in layers if f"blk.{layer}.ffn_gate_inp.weight" not in gguf.tensors)
    if dense and architecture == "llama":
        raise unsupported_model(f"Layers without experts ({len(dense)}) are not supported in a llama that has some.")
    count = positive(raw, "expert_count", at_most=MAX_EXPERTS)
    return ExpertsConfig(
        count=count,
        chosen=positive(raw, "expert_used_count", at_most=count),
        width=positive(raw, "expert_feed_forward_length", integer(raw, "feed_forward_length")),
        dense_layers=dense,
    )


def _vocab_size(gguf: GgufFile) -> int:
    info = gguf.tensors.get("token_embd.weight")
    if info is None:
        raise unsupported_model(f"{gguf.path} has no tensor 'token_embd.weight'.")
    return info.shape[0]


def _eos(metadata: Raw) -> tuple[int, ...]:
    """End of sequence and, where it is another token, end of turn."""
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    return tuple(dict.fromkeys(integer(metadata, key) for key in keys if key in metadata))


def _scale(raw: Raw, architecture: str, even_share: int, head_dim: int) -> float:
    odd_one_out = architecture == "gemma3" and integer(raw, "block_count") == GEMMA3_27B_LAYERS
    return number(raw, "attention.scale", float(even_share if odd_one_out else head_dim) ** -0.5)


def _windows(raw: Raw, architecture: str) -> tuple[int | None, ...]:
    layers = positive(raw, "block_count", at_most=MAX_LAYERS)
    window = integer(raw, "attention.sliding_window", 0)
    if not window:
        return (None,) * layers
    if architecture != "gemma3":
        return (window,) * layers
    pattern = raw.get("attention.sliding_window_pattern", GEMMA3_PATTERN)
    if isinstance(pattern, int) and pattern > 0:
        return tuple(window if (layer + 1) % pattern else None for layer in range(layers))
    if not isinstance(pattern, np.ndarray) or len(pattern) != layers:
        raise unsupported_model(f"The sliding window pattern {pattern!r} does not describe {layers} layers.")
    return tuple(window if windowed else None for windowed in pattern.tolist())


def _window_rope(raw: Raw, architecture: str) -> RopeConfig | None:
    if architecture != "gemma3":
        return None
    return RopeConfig(theta=number(raw, "rope.freq_base_swa", GEMMA3_LOCAL_THETA))


def _rope(gguf: GgufFile, raw: Raw, head_dim: int, positions: int) -> RopeConfig:
    if integer(raw, "rope.dimension_count", head_dim) != head_dim:
        raise unsupported_model(
            f"Rotating {raw['rope.dimension_count']} of {head_dim} head dimensions is not supported."
        )
    stretched = "rope.scaling.factor" in raw or "rope.scale_linear" in raw
    kind = raw.get("rope.scaling.type", "linear" if stretched else "none")
    if kind not in SCALINGS:
        raise unsupported_model(f"RoPE scaling {kind!r} is not supported. Supported: {', '.join(SCALINGS)}.")
    stretch = number(raw, "rope.scaling.factor", number(raw, "rope.scale_linear", 1.0))
    extra = number(raw, "rope.scaling.attn_factor", number(raw, "rope.scaling.yarn_attn_factor", 1.0))
    if extra != 1.0 or number(raw, "rope.scaling.yarn_log_multiplier", 0.0):
        raise unsupported_model("A RoPE attention factor of its own in a GGUF file is not supported.")
    return RopeConfig(
        theta=number(raw, "rope.freq_base", 1e6 if gguf.metadata["general.architecture"] == "gemma3" else 1e4),
        kind=SCALINGS[kind],
        factor=stretch,
        original_positions=positive(raw, "rope.scaling.original_context_length", positions),
        beta_fast=number(raw, "rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=number(raw, "rope.scaling.yarn_beta_slow", 1.0),
        divisors=_divisors(gguf, head_dim),
    )


def _divisors(gguf: GgufFile, head_dim: int) -> tuple[float, ...] | None:
    """Llama 3's scaling, which GGUF carries as a tensor of one divisor per frequency."""
    info = gguf.tensors.get("rope_freqs.weight")
    if info is None:
        return None
    if info.shape != (head_dim // 2,):
        raise unsupported_model(f"Tensor 'rope_freqs.weight' has shape {list(info.shape)}, not [{head_dim // 2}].")
    return cast(tuple[float, ...], tuple(gguf.floats(info.name).tolist()))
