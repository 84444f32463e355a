"""A `ModelConfig` as Hugging Face's config.json, for models whose file has none: the inverse of `config_from_hf`.

Written with the keys that every version of the readers knows. What cannot be said in them is refused.
"""

from __future__ import annotations

import math
from typing import Any

from inference_stack.core.errors import unsupported_model
from inference_stack.models.config import ModelConfig, RopeConfig, config_from_hf

MODEL_TYPES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "mistral": ("MistralForCausalLM", "mistral"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
}
LLAMA3_FACTORS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """config.json's content. Raises `unsupported_model` for a model that it cannot describe."""
    windowed = any(config.windows)
    architecture = "mistral" if config.architecture == "llama" and windowed else config.architecture
    name, model_type = MODEL_TYPES[architecture]
    raw: dict[str, Any] = {
        "architectures": [name],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "eos_token_id": list(config.eos_tokens),
        **_activation(config),
        **_windows(config, architecture),
        **_rope(config),
    }
    _check(config, raw)
    return raw


def _activation(config: ModelConfig) -> dict[str, Any]:
    name = "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else config.activation
    return {"hidden_activation" if config.architecture == "gemma3" else "hidden_act": name}


def _windows(config: ModelConfig, architecture: str) -> dict[str, Any]:
    window = max((size for size in config.windows if size), default=None)
    kinds = ["sliding_attention" if size else "full_attention" for size in config.windows]
    if architecture == "gemma3":
        scale = {"query_pre_attn_scalar": round(config.attention_scale**-2, 6)}
        return scale | {"sliding_window": window or config.max_positions, "layer_types": kinds}
    if architecture == "mistral":
        return {"sliding_window": window}
    if window is None or architecture == "llama":
        return {}
    return {"use_sliding_window": True, "sliding_window": window, "layer_types": kinds, "max_window_layers": 0}


def _rope(config: ModelConfig) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_theta": config.rope.theta, "rope_scaling": _scaling(config)}
    if config.window_rope is not None:
        found["rope_local_base_freq"] = config.window_rope.theta
    return found


def _scaling(config: ModelConfig) -> dict[str, Any] | None:
    rope = config.rope
    if rope.divisors is not None:
        return _llama3(rope, config.head_dim)
    if rope.kind == "default":
        return None
    scaling: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind == "yarn":
        scaling |= {
            "original_max_position_embeddings": rope.original_positions,
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
        }
    return scaling


def _llama3(rope: RopeConfig, head_dim: int) -> dict[str, Any]:
    """Llama 3's scaling, which GGUF files carry as one divisor for each frequency."""
    assert rope.divisors is not None
    scaling = {"rope_type": "llama3", "factor": round(max(rope.divisors), 4)} | LLAMA3_FACTORS
    expected = [_llama3_divisor(rope.theta ** (-2 * i / head_dim), scaling) for i in range(head_dim // 2)]
    if any(abs(ours - theirs) > 1e-3 * theirs for ours, theirs in zip(expected, rope.divisors, strict=True)):
        raise unsupported_model("The file's rotary frequencies are not Llama 3's; config.json cannot describe them.")
    return scaling


def _llama3_divisor(frequency: float, scaling: dict[str, Any]) -> float:
    positions, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = positions * frequency / (2 * math.pi)
    smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
    return 1.0 / ((1 - smooth) / factor + smooth)


def _check(config: ModelConfig, raw: dict[str, Any]) -> None:
    """Reading it back must give what it was made of, up to the two ways of saying Llama 3's scaling and unused rope numbers."""
    read = config_from_hf(raw)
    for name in ("windows", "tied", "attention_bias", "mlp_bias", "head_dim", "kv_heads", "activation"):
        if getattr(read, name) != getattr(config, name):
            raise unsupported_model(f"config.json cannot describe {name} = {getattr(config, name)} of this model.")
    if not math.isclose(read.attention_scale, config.attention_scale, rel_tol=1e-5):
        raise unsupported_model(f"config.json cannot describe an attention scale of {config.attention_scale}.")
