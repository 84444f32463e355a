"""GGUF files of every family against transformers holding the same unpacked weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Quantisation

from inference_stack.core.errors import InferenceError
from inference_stack.models.loader import load_model, read_config, state_dict
from inference_stack.ops.api import Quantised
from inference_stack.ops.reference.quantised import dequantise
from tests.artifacts.gguf_writer import STRING, Gguf
from tests.models import gguf_maker, tiny
from tests.models.paged import PagedModel
from tests.models.reference import ops

WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
FAMILIES = ["llama", "llama-tied-mqa", "llama-biased", "llama3-rope", "llama-yarn", "llama-linear-rope", "mistral-full",
            "qwen3", "gemma3-pattern"]  # fmt: skip
MIXTURES = {"mixtral": {}, "qwen3-moe": {"moe_intermediate_size": 32, "head_dim": 32}}
NARROW_FAMILIES = ["qwen2", "qwen2-yarn"]


def make(family: str) -> tiny.PreTrainedModel:
    if family == "gemma3-pattern":
        # GGUF has no key for these: every sixth layer is full, queries are scaled by the head dimension.
        return tiny.make("gemma3", **WIDE, num_hidden_layers=7, sliding_window_pattern=6, query_pre_attn_scalar=32)
    if family in NARROW_FAMILIES:
        return tiny.make(family, hidden_size=64, intermediate_size=96)
    return tiny.make(family, **(WIDE | MIXTURES.get(family, {})))


@pytest.mark.parametrize("family", [*FAMILIES, *NARROW_FAMILIES, *MIXTURES])
def test_logits_equal_transformers(family: str, tmp_path: Path) -> None:
    oracle = make(family)
    model = load_model(gguf_maker.write(oracle, tmp_path / "m.gguf", Quantisation.F32)).model
    prompt = tiny.tokens(50, seed=3)
    logits_TV = PagedModel(model, ops(), rows=1, max_tokens=64).step([prompt])
    torch.testing.assert_close(logits_TV, tiny.oracle_logits(oracle, prompt), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", MIXTURES)
def test_quantised_experts_are_read_one_by_one(family: str, tmp_path: Path) -> None:
    oracle = make(family)
    files = gguf_maker.write(oracle, tmp_path / "m.gguf", Quantisation.Q8_0)
    prompt = tiny.tokens(30, seed=3)
    dense, kept = load_model(files, dequantise=True), load_model(files)
    logits_TV = PagedModel(dense.model, ops(), rows=1, max_tokens=64).step([prompt])
    torch.testing.assert_close(logits_TV, tiny.oracle_logits(oracle, prompt), rtol=1e-4, atol=1e-4)
    gate_up = kept.experts[0].gate_up
    assert isinstance(gate_up, tuple) and isinstance(gate_up[0].weight, Quantised)
    assert kept.quantisation == "w8g32 from Q8_0"


TYPES = {
    "Q4_0": "w4g32",
    "Q4_1": "w4g32",
    "Q5_0": "w8g32",
    "Q5_1": "w8g32",
    "Q8_0": "w8g32",
    "Q4_K": "w4g32",
    "Q5_K": "w8g32",
    "Q6_K": "w8g16",
    "F16": "fp16",
    "BF16": "bf16",
}
LARGE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 2}


def make_large(family: str) -> tiny.PreTrainedModel:
    """Rows of 256, as K-quants need them."""
    size = LARGE | ({"num_hidden_layers": 7, "query_pre_attn_scalar": 64} if family == "gemma3" else {})
    return tiny.make(family, **(size | ({"sliding_window_pattern": 6} if family == "gemma3" else {})))


def executed(quantisation: str) -> str:
    name = {"F16": "fp16", "BF16": "bf16"}.get(quantisation, quantisation)
    return TYPES[quantisation] if name == TYPES[quantisation] else f"{TYPES[quantisation]} from {name}"


OTHER_FAMILIES = [("qwen2", "Q4_K"), ("qwen2", "Q5_K"), ("qwen2", "Q8_0"), ("gemma3", "Q4_K"), ("gemma3", "Q6_K")]


@pytest.mark.parametrize(("family", "quantisation"), [*(("llama", kind) for kind in TYPES), *OTHER_FAMILIES])
def test_every_type_gives_transformers_the_same_numbers_and_logits(
    family: str, quantisation: str, tmp_path: Path
) -> None:
    oracle = make_large(family)
    files = gguf_maker.write(oracle, tmp_path / "m.gguf", Quantisation[quantisation])
    found, expected = state_dict(files), oracle.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    prompt = tiny.tokens(20, seed=4)
    model = load_model(files, torch.float32, dequantise=True).model
    logits_TV = PagedModel(model, ops(), rows=1, max_tokens=32).step([prompt])
    torch.testing.assert_close(logits_TV, tiny.oracle_logits(oracle, prompt), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("quantisation", TYPES)
def test_every_type_is_executed_as_it_is(quantisation: str, tmp_path: Path) -> None:
    oracle = make_large("llama")
    loaded = load_model(gguf_maker.write(oracle, tmp_path / "m.gguf", Quantisation[quantisation]))
    assert loaded.quantisation == executed(quantisation)
    prompt = tiny.tokens(20, seed=4)
    logits_TV = PagedModel(loaded.model, ops(), rows=1, max_tokens=32).step([prompt])
    expected = tiny.oracle_logits(oracle, prompt)
    assert (logits_TV - expected).norm() < 0.1 * expected.norm()


def mixture(name: str) -> Quantisation:
    """As Q4_K_M files have it: more bits for v, down and the table."""
    return Quantisation.Q6_K if any(part in name for part in ("v_proj", "down_proj", "embed")) else Quantisation.Q4_K


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_mixed_types_are_fused_without_loss(family: str, tmp_path: Path) -> None:
    oracle = make_large(family)
    files = gguf_maker.write(oracle, tmp_path / "m.gguf", mixture)
    loaded, state = load_model(files), oracle.state_dict()
    qkv = loaded.linears[1].weight
    assert isinstance(qkv, Quantised) and (qkv.bits, qkv.group) == (8, 16)
    expected = torch.cat([state[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"])
    assert torch.equal(dequantise(qkv), expected)
    assert "w4g32 from Q4_K" in loaded.quantisation and "w8g16 from Q4_K+Q6_K" in loaded.quantisation


def test_quantised_beside_dense_is_made_dense_and_said(tmp_path: Path) -> None:
    oracle = make_large("llama")
    files = gguf_maker.write(
        oracle, tmp_path / "m.gguf", lambda name: Quantisation.F16 if "v_proj" in name else Quantisation.Q8_0
    )
    loaded, state = load_model(files), oracle.state_dict()
    qkv = loaded.linears[1].weight
    expected = torch.cat([state[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"])
    assert isinstance(qkv, torch.Tensor) and torch.equal(qkv, expected)
    assert loaded.quantisation == "w8g32 from Q8_0, fp32 from Q8_0+fp16 in 2 of 10"


def test_weight_bytes_are_those_in_memory(tmp_path: Path) -> None:
    files = gguf_maker.write(make_large("llama"), tmp_path / "m.gguf", Quantisation.Q4_1)
    loaded = load_model(files)
    kept = sum(linear.weight.nbytes for linear in loaded.linears)
    norms = 4 * 256 * (2 * 2 + 1)
    assert loaded.weight_bytes == kept + norms
    assert kept == sum(math.prod(linear.weight.shape) for linear in loaded.linears) * 20 // 32


def test_ends_of_sequence_and_of_turn_come_from_the_metadata(tmp_path: Path) -> None:
    files = gguf_maker.write(make("llama"), tmp_path / "m.gguf", Quantisation.F32)
    assert load_model(files).eos_tokens == (2, 5)


def test_an_unsupported_quantisation_names_tensor_and_type(tmp_path: Path) -> None:
    files = gguf_maker.write(make_large("llama"), tmp_path / "m.gguf", Quantisation.TQ1_0)
    with pytest.raises(InferenceError, match=r"tensor '.+\.weight' has type TQ1_0, which is not supported"):
        load_model(files)


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(Gguf().add("general.architecture", STRING, "mamba").encode())
    with pytest.raises(InferenceError, match=r"not supported: 'mamba'.*llama, qwen2, qwen3, gemma3"):
        read_config(tiny.resolve(str(tmp_path / "m.gguf"), tmp_path))
