"""The models that are measured: real shapes, kept as their config.json, and a tiny model of every architecture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHAPES = Path(__file__).with_name("shapes")


@dataclass(frozen=True, slots=True)
class Measured:
    """A shape by name, and the form in which its weights are drawn."""

    name: str
    shape: str
    quantise: str | None = None

    def raw(self, tiny: bool) -> dict[str, Any]:
        """Its config.json; with `tiny` of a model of the same kind that a CPU can run."""
        raw: dict[str, Any] = json.loads((SHAPES / f"{self.shape}.json").read_text())
        return shrunk(raw) if tiny else raw


MEASURED = (
    Measured("llama-3.1-8b", "llama-3.1-8b"),
    Measured("qwen2.5-7b-w4g128", "qwen2.5-7b", "w4g128"),
    Measured("qwen3-30b-a3b", "qwen3-30b-a3b"),
    Measured("qwen3-8b", "qwen3-8b"),
    Measured("smollm2-135m", "smollm2-135m"),
)
"""In the order of what is most wanted to be known."""


def measured(name: str) -> Measured:
    """Raises `SystemExit` naming what there is."""
    found = {one.name: one for one in MEASURED}
    if name not in found:
        raise SystemExit(f"no shape {name!r}; there are {', '.join(found)}")
    return found[name]


SMALL: dict[str, Any] = {
    "vocab_size": 331,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
FEW_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "norm_topk_prob": True}


def shrunk(raw: dict[str, Any]) -> dict[str, Any]:
    """The same kind of model with tiny dimensions."""
    few = FEW_EXPERTS if "num_experts" in raw else {}
    kept = {key: value for key, value in raw.items() if key not in ("rope_scaling", "rope_parameters")}
    return kept | SMALL | few


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
GEMMA: dict[str, Any] = {
    "query_pre_attn_scalar": 24,
    "sliding_window": 20,
    "sliding_window_pattern": 2,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
GPT_OSS: dict[str, Any] = {
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": 20,
    "rope_scaling": YARN,
    "attention_bias": True,
}

EVERY_KIND: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama, one KV head, tied": ("LlamaForCausalLM", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama, 3.1's rope, biases": ("LlamaForCausalLM", {"rope_scaling": LLAMA3_ROPE, "attention_bias": True}),
    "mistral, window": ("MistralForCausalLM", {"sliding_window": 20}),
    "qwen2, yarn": ("Qwen2ForCausalLM", {"rope_scaling": YARN}),
    "qwen2, some windows": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 64}),
    "qwen3, heads of 128": ("Qwen3ForCausalLM", {"head_dim": 128, "num_attention_heads": 8, "num_key_value_heads": 1}),
    "gemma3": ("Gemma3ForCausalLM", GEMMA),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", FEW_EXPERTS),
    "gpt_oss": ("GptOssForCausalLM", GPT_OSS),
}


def kind(name: str, **changes: Any) -> dict[str, Any]:
    """The config.json of a tiny model."""
    architecture, options = EVERY_KIND[name]
    return {"architectures": [architecture], **SMALL, **options, **changes}
