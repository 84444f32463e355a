"""The real demo model against transformers holding the same unpacked weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from inference_stack.artifacts.files import ModelFiles
from inference_stack.artifacts.gguf import GgufFile
from inference_stack.models.api import LoadedModel
from inference_stack.models.loader import load_model
from tests.models import tiny
from tests.models.oracle import llama_oracle
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
def dequantised(files: ModelFiles) -> LoadedModel:
    return load_model(files, dequantise=True)


@pytest.fixture(scope="module")
def oracle(files: ModelFiles) -> PreTrainedModel:
    return llama_oracle(files)


def test_the_file_is_described_truly(loaded: LoadedModel, files: ModelFiles) -> None:
    assert (loaded.architecture, loaded.eos_tokens) == ("llama", (2,))
    assert loaded.quantisation == "w4g32 from Q4_1, w8g32 from Q8_0"
    assert loaded.weight_bytes < files.total_bytes


def test_dequantised_it_is_described_truly(dequantised: LoadedModel) -> None:
    assert dequantised.quantisation == "fp32 from Q4_1, fp32 from Q8_0"
    assert dequantised.weight_bytes == 538_060_032


def test_prompt_logits_of_dequantised_weights_equal_transformers(
    dequantised: LoadedModel, oracle: PreTrainedModel, prompt: list[int]
) -> None:
    logits_TV = PagedModel(dequantised.model, ops(), rows=1, max_tokens=32).step([prompt])
    torch.testing.assert_close(logits_TV, tiny.oracle_logits(oracle, prompt), rtol=1e-3, atol=2e-3)


def test_prompt_logits_of_quantised_weights_are_close(
    loaded: LoadedModel, oracle: PreTrainedModel, prompt: list[int]
) -> None:
    logits_TV = PagedModel(loaded.model, ops(), rows=1, max_tokens=32).step([prompt])
    expected = tiny.oracle_logits(oracle, prompt).log_softmax(-1)
    divergence = torch.nn.functional.kl_div(logits_TV.log_softmax(-1), expected, reduction="batchmean", log_target=True)
    assert divergence < 0.02


def test_greedy_tokens_equal_transformers(loaded: LoadedModel, oracle: PreTrainedModel, prompt: list[int]) -> None:
    emitted = PagedModel(loaded.model, ops(), rows=1, max_tokens=32).greedy([prompt], count=4, chunk=7)
    assert emitted == [tiny.oracle_greedy(oracle, prompt, 4)]
