"""Writes tiny models as GGUF files with the format's own package: its tensor names, its row order, its quantisation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from transformers import PreTrainedModel

from inference_stack.artifacts.files import ModelFiles
from inference_stack.artifacts.resolve import resolve
from tests.artifacts.blocks import random_blocks

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
}

RANDOM_SIZES = {"Q4_K": 1e-4, "Q5_K": 5e-5, "Q6_K": 1e-4}
"""How large a block's scale shall be for weights of a plausible size."""

Kind = gguf.GGMLQuantizationType
Choose = Callable[[str], Kind]
"""From a parameter's name to the type that it is stored in."""


def write(model: PreTrainedModel, path: Path, quantisation: Kind | Choose) -> ModelFiles:
    """The model with its matrices quantised, as a converter would write it. The model is given the numbers of the file.

    Types that the format's package cannot make get random blocks.
    """
    choose = quantisation if not isinstance(quantisation, Kind) else lambda name: quantisation
    architecture = ARCHITECTURES[model.config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    _metadata(writer, model.config)
    names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if ".mlp.experts." in name:
            _add_experts(writer, name, parameter, choose(name))
            continue
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        values = _converted(name, parameter.detach().numpy(), model.config)
        if values.ndim == 1:
            writer.add_tensor(own, values)
            parameter.data = torch.from_numpy(_restored(name, values, model.config))
            continue
        kind = choose(name)
        raw = _packed(values, kind)
        writer.add_tensor(own, raw, raw_dtype=kind)
        numbers = dequantize(raw, kind).astype(np.float32).reshape(values.shape)
        parameter.data = torch.from_numpy(_restored(name, numbers, model.config))
    if model.config.model_type == "llama" and model.config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_divisors(model))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return resolve(str(path), path.parent)


def _add_experts(writer: gguf.GGUFWriter, name: str, parameter: torch.nn.Parameter, kind: Kind) -> None:
    """A stack [X, N, K] of experts; gate and up apart."""
    layer = name.split(".")[2]
    parts = ("gate", "up") if name.endswith("gate_up_proj") else ("down",)
    kept = []
    for part, values in zip(parts, parameter.detach().chunk(len(parts), dim=1), strict=True):
        raw = quantize(values.contiguous().numpy(), kind)
        writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight", raw, raw_dtype=kind)
        kept.append(torch.from_numpy(dequantize(raw, kind).astype(np.float32).reshape(values.shape)))
    parameter.data = torch.cat(kept, dim=1)


def _packed(values: np.ndarray, kind: Kind) -> np.ndarray:
    if kind.name in RANDOM_SIZES:
        return random_blocks(kind, *values.shape, size=RANDOM_SIZES[kind.name], seed=values.size)
    return quantize(values, kind)


def _metadata(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "num_local_experts", None):
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if getattr(config, "moe_intermediate_size", None):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(5)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
    _rope(writer, config)


def _rope(writer: gguf.GGUFWriter, config: Any) -> None:
    rope = config.rope_parameters
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
        rope = rope["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _restored(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    """The inverse of `_converted`."""
    if _holds_one(name, config):
        return values - 1
    heads = _interleaved_heads(name, config)
    if heads is None:
        return values
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(values.shape))


def _holds_one(name: str, config: Any) -> bool:
    return config.model_type == "gemma3_text" and name.endswith("norm.weight")


def _interleaved_heads(name: str, config: Any) -> int | None:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    return heads if ARCHITECTURES[config.model_type] == gguf.MODEL_ARCH.LLAMA else None


def _converted(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    """Llama's q and k rows in interleaved rotary order; Gemma's norms with their 1."""
    if _holds_one(name, config):
        return values + 1
    heads = _interleaved_heads(name, config)
    if heads is None:
        return values
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def _llama3_divisors(model: PreTrainedModel) -> np.ndarray:
    rotary = model.model.rotary_emb
    plain, _ = rotary.compute_default_rope_parameters(model.config)
    divisors: np.ndarray = (plain / rotary.inv_freq).numpy()
    return divisors
