"""Tiny random models of every family, made by transformers, which is also the oracle for what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from inference_stack.artifacts.files import ModelFiles
from inference_stack.artifacts.resolve import resolve

VOCAB = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
GEMMA = {
    "head_dim": 32,
    "query_pre_attn_scalar": 24,
    "sliding_window": 20,
    "rope_parameters": {
        "full_attention": LINEAR | {"rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 40, "num_experts": 6, "head_dim": 16}
GPT_OSS = {
    "head_dim": 16,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_local_experts": 5,
    "num_experts_per_tok": 3,
    "sliding_window": 20,
    "rope_parameters": YARN | {"truncate": False, "rope_theta": 150000.0},
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama-tied-mqa": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 32}),
    "llama-linear-rope": ("Llama", {"rope_parameters": LINEAR}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "llama-yarn-factor": ("Llama", {"rope_parameters": YARN | {"attention_factor": 0.7, "beta_fast": 16.0}}),
    "mistral-window": ("Mistral", {"sliding_window": 20}),
    "mistral-full": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen2-windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-biased": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "gemma3": ("Gemma3", GEMMA | {"sliding_window_pattern": 3}),
    "gemma3-mixed": ("Gemma3", GEMMA | {"layer_types": MIXED, "num_key_value_heads": 1}),
    "mixtral": ("Mixtral", {"num_local_experts": 5}),
    "mixtral-window": ("Mixtral", {"num_local_experts": 3, "sliding_window": 20, "head_dim": 16}),
    "qwen3-moe": ("Qwen3Moe", MOE | {"norm_topk_prob": True}),
    "qwen3-moe-mixed": ("Qwen3Moe", MOE | {"decoder_sparse_step": 2, "tie_word_embeddings": True}),
    "qwen3-moe-named": ("Qwen3Moe", MOE | {"mlp_only_layers": [1], "attention_bias": True}),
    "gpt-oss": ("GptOss", GPT_OSS),
    "gpt-oss-full": ("GptOss", GPT_OSS | {"layer_types": ["full_attention"] * 3, "swiglu_limit": 1.0}),
}


def make(family: str, **changes: Any) -> PreTrainedModel:
    """A random model whose every parameter matters: norms and biases are random too."""
    class_name, options = FAMILIES[family]
    kind = f"{class_name}TextConfig" if class_name == "Gemma3" else f"{class_name}Config"
    config = getattr(transformers, kind)(**(SIZES | options | changes))
    torch.manual_seed(sum(map(ord, family)))
    model: PreTrainedModel = getattr(transformers, f"{class_name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.2 if parameter.dim() > 1 else 0.5
            parameter.add_(torch.randn_like(parameter) * spread)
    return model


def save(model: PreTrainedModel, directory: Path, **options: Any) -> ModelFiles:
    """Saved as safetensors and found again by the resolver."""
    model.save_pretrained(directory, **options)
    return resolve(str(directory), directory)


def tokens(count: int, seed: int) -> list[int]:
    """Random tokens, none of them special."""
    draw = torch.Generator().manual_seed(seed)
    found: list[int] = torch.randint(3, VOCAB, (count,), generator=draw).tolist()
    return found


@torch.inference_mode()
def oracle_logits(model: PreTrainedModel, prompt: list[int]) -> torch.Tensor:
    """logits_TV of a whole prompt."""
    return model(torch.tensor([prompt])).logits[0]


@torch.inference_mode()
def oracle_greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens, ends of sequence ignored, recomputed from the start for each one."""
    known = list(prompt)
    for _ in range(count):
        known.append(int(oracle_logits(model, known)[-1].argmax()))
    return known[len(prompt) :]
