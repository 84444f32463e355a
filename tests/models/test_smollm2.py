"""The real demo model against transformers holding the same unpacked weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from inference_stack.artifacts.files import ModelFiles
from inference_stack.artifacts.gguf import GgufFile
from inference_stack.models.api import LoadedModel
from inference_stack.models.loader import load_model, read_config, state_dict
from tests.models import tiny
from tests.models.paged import PagedModel
from tests.models.reference import ops

pytestmark = pytest.mark.model
PROMPT = ["<|im_start|>", "user", "Ċ", "What", "Ġis", "Ġthe", "Ġcapital", "Ġof", "ĠFrance", "?", "<|im_end|>", "Ċ",
          "<|im_start|>", "ass", "istant", "Ċ"]  # fmt: skip


@pytest.fixture(scope="module")
def files(demo_model: Path) -> ModelFiles:
    return tiny.resolve(str(demo_model), demo_model.parent)


@pytest.fixture(scope="module")
def prompt(files: ModelFiles) -> list[int]:
    with GgufFile(files.weights[0]) as gguf:
        vocabulary = gguf.metadata["tokenizer.ggml.tokens"]
    return [vocabulary.index(token) for token in PROMPT]


@pytest.fixture(scope="module")
def loaded(files: ModelFiles) -> LoadedModel:
    return load_model(files)


@pytest.fixture(scope="module")
def oracle(files: ModelFiles) -> PreTrainedModel:
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


def test_the_file_is_described_truly(loaded: LoadedModel) -> None:
    assert (loaded.architecture, loaded.quantisation, loaded.eos_tokens) == ("llama", "fp32 from Q4_1", (2,))
    assert loaded.weight_bytes == 538_060_032


def test_prompt_logits_equal_transformers(loaded: LoadedModel, oracle: PreTrainedModel, prompt: list[int]) -> None:
    logits_TV = PagedModel(loaded.model, ops(), rows=1, max_tokens=32).step([prompt])
    torch.testing.assert_close(logits_TV, tiny.oracle_logits(oracle, prompt), rtol=1e-3, atol=2e-3)


def test_greedy_tokens_equal_transformers(loaded: LoadedModel, oracle: PreTrainedModel, prompt: list[int]) -> None:
    emitted = PagedModel(loaded.model, ops(), rows=1, max_tokens=32).greedy([prompt], count=4, chunk=7)
    assert emitted == [tiny.oracle_greedy(oracle, prompt, 4)]
