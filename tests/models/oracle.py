"""transformers' own Llama holding the weights that our reader dequantised."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from inference_stack.artifacts.files import ModelFiles
from inference_stack.models.loader import read_config, state_dict


def llama_oracle(files: ModelFiles) -> PreTrainedModel:
    """The same weights in transformers, fp32."""
    config = read_config(files)
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                max_position_embeddings=config.max_positions,
                rms_norm_eps=config.norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
                tie_word_embeddings=True,
            )
        )
    model.to_empty(device="cpu").load_state_dict(state_dict(files), strict=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval()
