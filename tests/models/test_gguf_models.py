"""GGUF files of every family against transformers holding the same unpacked weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Quantisation

from inference_stack.core.errors import InferenceError
from inference_stack.models.loader import load_model, read_config, state_dict
from tests.artifacts.gguf_writer import STRING, Gguf
from tests.models import gguf_maker, tiny
from tests.models.paged import PagedModel
from tests.models.reference import ops

WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
FAMILIES = ["llama", "llama-tied-mqa", "llama-biased", "llama3-rope", "llama-yarn", "llama-linear-rope", "mistral-full",
            "qwen3", "gemma3-pattern"]  # fmt: skip
NARROW_FAMILIES = ["qwen2", "qwen2-yarn"]


def make(family: str) -> tiny.PreTrainedModel:
    if family == "gemma3-pattern":
        # GGUF has no key for these: every sixth layer is full, queries are scaled by the head dimension.
        return tiny.make("gemma3", **WIDE, num_hidden_layers=7, sliding_window_pattern=6, query_pre_attn_scalar=32)
    if family in NARROW_FAMILIES:
        return tiny.make(family, hidden_size=64, intermediate_size=96)
    return tiny.make(family, **WIDE)


@pytest.mark.parametrize("family", [*FAMILIES, *NARROW_FAMILIES])
def test_logits_equal_transformers(family: str, tmp_path: Path) -> None:
    oracle = make(family)
    model = load_model(gguf_maker.write(oracle, tmp_path / "m.gguf", Quantisation.F32)).model
    prompt = tiny.tokens(50, seed=3)
    logits_TV = PagedModel(model, ops(), rows=1, max_tokens=64).step([prompt])
    torch.testing.assert_close(logits_TV, tiny.oracle_logits(oracle, prompt), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantisation", ["Q4_0", "Q4_1", "Q8_0", "F16", "BF16"])
@pytest.mark.parametrize("family", ["llama", "gemma3-pattern"])
def test_unpacked_weights_give_transformers_the_same_logits(family: str, quantisation: str, tmp_path: Path) -> None:
    oracle = make(family)
    files = gguf_maker.write(oracle, tmp_path / "m.gguf", Quantisation[quantisation])
    oracle.load_state_dict(state_dict(files))
    loaded, prompt = load_model(files), tiny.tokens(30, seed=4)
    logits_TV = PagedModel(loaded.model, ops(), rows=1, max_tokens=32).step([prompt])
    torch.testing.assert_close(logits_TV, tiny.oracle_logits(oracle, prompt), rtol=1e-4, atol=1e-4)
    assert loaded.quantisation == f"fp32 from {quantisation}"


def test_ends_of_sequence_and_of_turn_come_from_the_metadata(tmp_path: Path) -> None:
    files = gguf_maker.write(make("llama"), tmp_path / "m.gguf", Quantisation.F32)
    assert load_model(files).eos_tokens == (2, 5)


def test_an_unsupported_quantisation_names_tensor_and_type(tmp_path: Path) -> None:
    files = gguf_maker.write(make("llama"), tmp_path / "m.gguf", Quantisation.Q5_0)
    with pytest.raises(InferenceError, match=r"tensor '.+\.weight' has type Q5_0, which is not supported"):
        load_model(files)


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(Gguf().add("general.architecture", STRING, "mamba").encode())
    with pytest.raises(InferenceError, match=r"not supported: 'mamba'.*llama, qwen2, qwen3, gemma3"):
        read_config(tiny.resolve(str(tmp_path / "m.gguf"), tmp_path))
