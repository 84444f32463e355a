"""What loading accepts, what it refuses by name, and what it says about the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference_stack.artifacts.files import ModelFiles
from inference_stack.core.errors import InferenceError
from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.models.gguf_config import GGUF_ARCHITECTURES
from inference_stack.models.loader import load_model, read_config, state_dict
from inference_stack.models.registry import ARCHITECTURES, supported
from inference_stack.ops.api import Linear
from tests.models import tiny


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return tiny.save(tiny.make("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def copy(llama: ModelFiles, tmp_path: Path) -> ModelFiles:
    root = Path(shutil.copytree(llama.root, tmp_path / "copy"))
    return replace(llama, root=root, weights=(root / llama.weights[0].name,))


def edit_config(files: ModelFiles, **changes: Any) -> None:
    path = files.root / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(files: ModelFiles, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(files.weights[0])
    edit(tensors)
    save_file(tensors, files.weights[0])


def refusal(files: ModelFiles) -> str:
    with pytest.raises(InferenceError) as caught:
        load_model(files)
    assert caught.value.info.code == "unsupported_model"
    return caught.value.info.message


def test_every_architecture_a_file_may_name_has_a_class() -> None:
    assert set(ARCHITECTURES) >= set(GGUF_ARCHITECTURES.values())
    assert len(supported()["huggingface"]) == len(ARCHITECTURES)


def test_a_missing_tensor_is_named(copy: ModelFiles) -> None:
    edit_weights(copy, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    assert "no tensor 'model.layers.1.mlp.up_proj.weight'" in refusal(copy)


def test_an_unexpected_tensor_is_named(copy: ModelFiles) -> None:
    edit_weights(copy, lambda tensors: tensors.update({"model.layers.9.extra.weight": torch.zeros(1)}))
    assert "Unexpected tensors" in (message := refusal(copy)) and "model.layers.9.extra.weight" in message


def test_a_shape_that_contradicts_the_configuration_is_named(copy: ModelFiles) -> None:
    edit_weights(copy, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(7)}))
    assert "Tensor 'model.norm.weight' has shape [7]; the configuration asks for [48]" in refusal(copy)


def test_rotary_tables_and_a_tied_output_matrix_are_no_surprise(tmp_path: Path) -> None:
    files = tiny.save(tiny.make("llama-tied-mqa"), tmp_path)
    surplus = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(6), "lm_head.weight": torch.zeros(97, 48)}
    edit_weights(files, lambda tensors: tensors.update(surplus))
    assert load_model(files).weight_bytes > 0


REFUSED = {
    "Architecture not supported: FalconForCausalLM. Supported: LlamaForCausalLM": {
        "architectures": ["FalconForCausalLM"]
    },
    "none named (model_type 'llama')": {"architectures": None},
    "quantised with 'bitsandbytes'": {"quantization_config": {"quant_method": "bitsandbytes"}},
    "RoPE type 'longrope' is not supported": {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
    "RoPE type 'dynamic' is not supported": {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2}},
    "Activation 'relu' is not supported": {"hidden_act": "relu"},
    "partial_rotary_factor": {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "needs a whole number 'hidden_size'": {"hidden_size": "many"},
    "needs a whole number 'vocab_size'": {"vocab_size": None},
    "needs a number 'factor'": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
    "cannot share 3 KV heads": {"num_key_value_heads": 3},
    "needs 'num_hidden_layers' between 1 and": {"num_hidden_layers": 0},
    "needs 'num_attention_heads' between 1 and": {"num_attention_heads": 0},
    "needs 'max_position_embeddings' between 1 and": {"max_position_embeddings": 1 << 40},
    "needs an object 'rope_parameters'": {"rope_parameters": "yarn"},
    "rotary embedding parameters make no sense": {"rope_parameters": tiny.LINEAR | {"factor": 0}},
    "odd": {"head_dim": 13},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(copy: ModelFiles, reason: str) -> None:
    edit_config(copy, **REFUSED[reason])
    assert reason in refusal(copy)


def test_soft_capping_is_refused(tmp_path: Path) -> None:
    files = tiny.save(tiny.make("gemma3"), tmp_path)
    edit_config(files, final_logit_softcapping=30.0)
    assert "final_logit_softcapping = 30.0" in refusal(files)


def test_old_configurations_mean_the_same(copy: ModelFiles) -> None:
    edit_config(copy, rope_parameters=None, rope_theta=500000.0, rope_scaling={"type": "linear", "factor": 2.0})
    rope = read_config(copy).rope
    assert (rope.theta, rope.kind, rope.factor) == (500000.0, "linear", 2.0)


def test_shards_load_like_one_file(tmp_path: Path) -> None:
    oracle = tiny.make("qwen3")
    one = tiny.save(oracle, tmp_path / "one")
    many = tiny.save(oracle, tmp_path / "many", max_shard_size="20KB")
    assert len(many.weights) > 2
    whole, parts = state_dict(one), state_dict(many)
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(("dtype", "stored"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16")])
def test_half_precision_matrices_stay_as_they_are(tmp_path: Path, dtype: torch.dtype, stored: str) -> None:
    loaded = load_model(tiny.save(tiny.make("llama").to(dtype), tmp_path))
    assert loaded.quantisation == stored
    assert all(isinstance(linear.weight, torch.Tensor) and linear.weight.dtype == dtype for linear in loaded.linears)
    assert loaded.model.norm_D.dtype == torch.float32  # type: ignore[attr-defined]


def test_matrices_are_converted_when_asked(tmp_path: Path) -> None:
    files = tiny.save(tiny.make("llama").to(torch.bfloat16), tmp_path)
    loaded = load_model(files, torch.float32)
    assert loaded.quantisation == "fp32 from bf16"
    table = loaded.linears[0].weight
    assert isinstance(table, torch.Tensor) and torch.equal(table, state_dict(files)["model.embed_tokens.weight"])


def test_every_projection_is_prepared_once_when_it_is_filled(llama: ModelFiles) -> None:
    prepared: list[tuple[int, tuple[int, ...]]] = []
    loaded = load_model(llama, prepare=lambda linear: prepared.append((id(linear), tuple(linear.weight.shape))))
    expected = [(id(linear), tuple(linear.weight.shape)) for linear in loaded.linears]
    assert sorted(prepared) == sorted(expected) and len(expected) == 14


def test_a_prepare_that_fails_is_not_lost(llama: ModelFiles) -> None:
    def fails(linear: Linear) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        load_model(llama, prepare=fails)


def test_a_tied_head_is_the_table_itself(tmp_path: Path) -> None:
    loaded = load_model(tiny.save(tiny.make("llama-tied-mqa"), tmp_path))
    assert loaded.model.head is loaded.model.table  # type: ignore[attr-defined]
    assert [linear.looked_up for linear in loaded.linears] == [True] + [False] * 12


def test_every_parameter_is_in_memory_once(llama: ModelFiles) -> None:
    parameters = sum(tensor.nbytes for tensor in state_dict(llama).values())
    assert load_model(llama).weight_bytes == parameters


def test_ends_of_sequence_come_from_the_generation_config_first(copy: ModelFiles) -> None:
    assert load_model(copy).eos_tokens == (2,)
    (copy.root / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert load_model(copy).eos_tokens == (7, 8)


def test_the_revision_depends_on_contents_only(llama: ModelFiles, copy: ModelFiles) -> None:
    before = load_model(copy).revision
    assert before == load_model(llama).revision
    edit_config(copy, rms_norm_eps=1e-5)
    assert load_model(copy).revision != before


def test_rotary_tables_are_as_long_as_asked(llama: ModelFiles) -> None:
    assert load_model(llama, max_positions=32).model.max_positions == 32
    assert load_model(llama, max_positions=10**9).model.max_positions == 256


def test_progress_ends_at_the_total(llama: ModelFiles) -> None:
    seen: list[tuple[str, int, int]] = []
    load_model(llama, progress=lambda *event: seen.append(event))
    done = [event[1] for event in seen]
    assert done == sorted(done) and done[-1] == seen[-1][2] > 0


def test_full_and_windowed_layers_are_two_groups(tmp_path: Path) -> None:
    groups = load_model(tiny.save(tiny.make("gemma3-mixed"), tmp_path)).model.kv_groups("bfloat16")
    assert groups == (
        KvGroupSpec(name="full", layers=(1,), kv_heads=1, head_dim=32, dtype="bfloat16"),
        KvGroupSpec(name="window", layers=(0, 2), kv_heads=1, head_dim=32, dtype="bfloat16", window=20),
    )


def test_a_window_longer_than_the_context_is_full_attention(copy: ModelFiles) -> None:
    edit_config(copy, architectures=["MistralForCausalLM"], sliding_window=256)
    assert [group.name for group in load_model(copy).model.kv_groups("float32")] == ["full"]
