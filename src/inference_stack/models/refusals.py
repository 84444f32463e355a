"""Architectures that are refused by name, with the reason: what they compute that no model here does."""

from __future__ import annotations

from typing import Final

RECURRENT: Final = "layers of linear attention or a state space, whose recurrent state is not kept here"
LATENT: Final = "multi-head latent attention, whose compressed KV is not kept here"

REASONS: Final[dict[str, str]] = {
    **dict.fromkeys(
        (
            "BambaForCausalLM",
            "FalconH1ForCausalLM",
            "FalconMambaForCausalLM",
            "GraniteMoeHybridForCausalLM",
            "JambaForCausalLM",
            "KimiLinearForCausalLM",
            "Lfm2ForCausalLM",
            "Lfm2MoeForCausalLM",
            "Mamba2ForCausalLM",
            "MambaForCausalLM",
            "MiniMaxForCausalLM",
            "MiniMaxM1ForCausalLM",
            "MiniMaxText01ForCausalLM",
            "NemotronHForCausalLM",
            "OlmoHybridForCausalLM",
            "Plamo2ForCausalLM",
            "Qwen3NextForCausalLM",
            "Qwen3_5ForCausalLM",
            "Qwen3_5ForConditionalGeneration",
            "Qwen3_5MoeForCausalLM",
            "Qwen3_5MoeForConditionalGeneration",
            "RecurrentGemmaForCausalLM",
            "RwkvForCausalLM",
            "Zamba2ForCausalLM",
            "ZambaForCausalLM",
            "xLSTMForCausalLM",
        ),
        RECURRENT,
    ),
    **dict.fromkeys(
        (
            "DeepseekV2ForCausalLM",
            "DeepseekV32ForCausalLM",
            "DeepseekV3ForCausalLM",
            "Glm4MoeLiteForCausalLM",
            "GlmMoeDsaForCausalLM",
            "KimiK2ForCausalLM",
            "LongcatFlashForCausalLM",
            "MiniCPM3ForCausalLM",
        ),
        LATENT,
    ),
}
"""Reasons by the name in config.json."""
