"""Quantised safetensors checkpoints in every layout that is read: their numbers, what they run as, what they compute."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from inference_stack.artifacts.files import ModelFiles
from inference_stack.core.errors import InferenceError
from inference_stack.models.loader import load_model, read_config, state_dict
from inference_stack.models.schemes import scheme_of
from inference_stack.ops.api import Linear, Quantised
from inference_stack.ops.reference.quantised import dequantise
from tests.models import quantised_maker, tiny
from tests.models.paged import PagedModel
from tests.models.quantised_maker import AWQ, FORMATS, GPTQ, Format
from tests.models.reference import ops

WIDE = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}


def make(directory: Path, form: Format, family: str = "llama", **options: Any) -> tuple[PreTrainedModel, ModelFiles]:
    oracle = tiny.make(family, **WIDE)
    return oracle, quantised_maker.write(oracle, directory, form, **options)


def numbers(linear: Linear) -> torch.Tensor:
    weight = linear.weight
    if isinstance(weight, Quantised):
        return dequantise(weight)
    assert isinstance(weight, torch.Tensor)
    return weight.float()


def logits(files: ModelFiles, prompt: list[int], **options: Any) -> torch.Tensor:
    return PagedModel(load_model(files, **options).model, ops(), rows=1, max_tokens=32).step([prompt])


@pytest.mark.parametrize("name", FORMATS)
def test_the_numbers_are_those_that_were_packed(name: str, tmp_path: Path) -> None:
    oracle, files = make(tmp_path, FORMATS[name])
    found, expected = state_dict(files), oracle.state_dict()
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=3e-7, atol=0)


@pytest.mark.parametrize("name", FORMATS)
def test_fused_projections_stay_quantised(name: str, tmp_path: Path) -> None:
    oracle, files = make(tmp_path, FORMATS[name])
    loaded = load_model(files)
    assert loaded.quantisation == f"{FORMATS[name].name}, fp32"
    qkv, state = loaded.linears[1], oracle.state_dict()
    assert isinstance(qkv.weight, Quantised)
    expected = torch.cat([state[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"])
    torch.testing.assert_close(numbers(qkv), expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("name", FORMATS)
def test_dequantised_weights_give_transformers_the_same_logits(name: str, tmp_path: Path) -> None:
    oracle, files = make(tmp_path, FORMATS[name])
    prompt = tiny.tokens(20, seed=4)
    found = logits(files, prompt, dequantise=True)
    torch.testing.assert_close(found, tiny.oracle_logits(oracle, prompt), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", FORMATS)
def test_quantised_execution_is_close_to_transformers(name: str, tmp_path: Path) -> None:
    oracle, files = make(tmp_path, FORMATS[name])
    prompt = tiny.tokens(20, seed=4)
    expected = tiny.oracle_logits(oracle, prompt)
    error = (logits(files, prompt) - expected).norm() / expected.norm()
    assert 0 < error < 0.05


def test_zeros_and_scales_are_halves_where_that_is_exact(tmp_path: Path) -> None:
    symmetric = load_model(make(tmp_path / "sym", FORMATS["gptq-v1"])[1]).linears[1].weight
    asymmetric = load_model(make(tmp_path / "asym", FORMATS["awq"])[1]).linears[1].weight
    assert isinstance(symmetric, Quantised) and isinstance(asymmetric, Quantised)
    assert symmetric.scale_NG.dtype == torch.float16 and asymmetric.scale_NG.dtype == torch.float32


@pytest.mark.parametrize("name", ["gptq-8", "packed-8", "int8-by-channel"])
def test_symmetric_8_bit_weights_have_no_zeros(name: str, tmp_path: Path) -> None:
    weight = load_model(make(tmp_path, FORMATS[name])[1]).linears[1].weight
    assert isinstance(weight, Quantised) and weight.zero_NG is None


def test_modules_that_were_left_out_stay_dense(tmp_path: Path) -> None:
    oracle, files = make(tmp_path, FORMATS["awq"], dense=("down_proj",))
    loaded = load_model(files)
    down = loaded.linears[4]
    assert torch.equal(numbers(down), oracle.state_dict()["model.layers.0.mlp.down_proj.weight"])
    assert isinstance(down.weight, torch.Tensor) and loaded.quantisation == "w4g32 from awq, fp32"


def test_quantised_beside_dense_is_made_dense_and_said(tmp_path: Path) -> None:
    oracle, files = make(tmp_path, FORMATS["awq"], dense=("v_proj",))
    loaded = load_model(files)
    assert "fp32 from awq+fp32 in 3 of 14" in loaded.quantisation
    prompt = tiny.tokens(20, seed=4)
    expected = tiny.oracle_logits(oracle, prompt)
    assert (logits(files, prompt) - expected).norm() < 0.05 * expected.norm()


def test_different_orders_are_made_dense_and_said(tmp_path: Path) -> None:
    oracle, files = make(tmp_path, FORMATS["gptq-v2-act-order"], same_order=False)
    loaded, state = load_model(files), oracle.state_dict()
    assert "fp32 from gptq in 6 of 14" in loaded.quantisation
    gate_up = torch.cat([state[f"model.layers.0.mlp.{part}_proj.weight"] for part in ("gate", "up")])
    torch.testing.assert_close(numbers(loaded.linears[3]), gate_up, rtol=3e-7, atol=0)


def test_weights_can_be_executed_in_fp32(tmp_path: Path) -> None:
    loaded = load_model(make(tmp_path, FORMATS["awq"])[1], dequantise=True)
    assert loaded.quantisation == "fp32, fp32 from awq"
    assert all(isinstance(linear.weight, torch.Tensor) for linear in loaded.linears)


def test_biases_that_only_the_checkpoint_has_are_added(tmp_path: Path) -> None:
    _, files = make(tmp_path, FORMATS["gptq-v1"])
    tensors = load_file(files.weights[0])
    bias = torch.arange(64, dtype=torch.float16)
    tensors |= {"model.layers.0.mlp.up_proj.bias": bias, "model.layers.0.mlp.down_proj.bias": torch.zeros(64)}
    save_file(tensors, files.weights[0])
    linears = load_model(files).linears
    assert linears[3].bias_N is not None and linears[4].bias_N is None
    assert torch.equal(linears[3].bias_N, torch.cat((torch.zeros(64), bias.float())))


def test_another_family_with_biases(tmp_path: Path) -> None:
    oracle, files = make(tmp_path, FORMATS["awq"], family="qwen2")
    prompt = tiny.tokens(20, seed=4)
    found = logits(files, prompt, dequantise=True)
    torch.testing.assert_close(found, tiny.oracle_logits(oracle, prompt), rtol=1e-4, atol=1e-3)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    _, files = make(tmp_path, FORMATS["awq"])
    tensors = load_file(files.weights[0])
    del tensors["model.layers.1.mlp.up_proj.scales"]
    save_file(tensors, files.weights[0])
    with pytest.raises(InferenceError, match=r"no tensor 'model\.layers\.1\.mlp\.up_proj\.scales'"):
        load_model(files)


def test_a_part_that_nobody_knows_is_named(tmp_path: Path) -> None:
    _, files = make(tmp_path, FORMATS["packed-4"])
    tensors = load_file(files.weights[0]) | {"model.layers.0.mlp.up_proj.input_scale": torch.zeros(1)}
    save_file(tensors, files.weights[0])
    with pytest.raises(InferenceError, match=r"Unexpected tensors.*up_proj\.input_scale"):
        load_model(files)


@pytest.mark.parametrize(
    ("filename", "form", "config"),
    [
        ("quantize_config.json", FORMATS["gptq-v1"], {"bits": 4, "group_size": 32, "desc_act": False}),
        ("quant_config.json", FORMATS["awq"], {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}),
    ],
)
def test_older_tools_wrote_a_file_of_their_own(filename: str, form: Format, config: object, tmp_path: Path) -> None:
    oracle, files = make(tmp_path, form)
    own = json.loads((tmp_path / "config.json").read_text())
    del own["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(own))
    (tmp_path / filename).write_text(json.dumps(config))
    assert torch.equal(state_dict(files)["lm_head.weight"], oracle.lm_head.weight)
    assert load_model(files).quantisation == f"{form.name}, fp32"


GROUPS = {"group_0": {"weights": {"num_bits": 4, "type": "int", "strategy": "group"}}}
CT = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": GROUPS}
FLOAT = {"group_0": {"weights": {"num_bits": 8, "type": "float"}}}
STATIC = {"group_0": {"weights": {"num_bits": 8}, "input_activations": {"type": "int", "dynamic": False}}}
REFUSED = {
    "quantised with 'bitsandbytes'": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "quantised with 'fp8'": {"quant_method": "fp8"},
    "awq and version 'gemv'": AWQ | {"version": "GEMV"},
    "awq and 8 bits": AWQ | {"bits": 8},
    "awq and no zero points": AWQ | {"zero_point": False},
    "gptq and checkpoint_format 'marlin'": GPTQ | {"checkpoint_format": "marlin"},
    "gptq and 3 bits": GPTQ | {"bits": 3},
    "whole number 'bits'": {"quant_method": "gptq"},
    "format 'float-quantized'": CT | {"format": "float-quantized"},
    "weights of type 'float' with 8 bits": CT | {"format": "naive-quantized", "config_groups": FLOAT},
    "activations quantised other than": CT | {"config_groups": STATIC},
    "a kv_cache_scheme": CT | {"kv_cache_scheme": {"num_bits": 8}},
    "a sparsity_config": CT | {"sparsity_config": {"format": "sparse-24-bitmask"}},
    "a transform_config": CT | {"transform_config": {"config_groups": {"R1": {}}}},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_layouts_that_nothing_reads_are_refused_by_name(reason: str) -> None:
    with pytest.raises(InferenceError) as caught:
        scheme_of(REFUSED[reason])
    assert caught.value.info.code == "unsupported_model" and reason in caught.value.info.message


def test_the_configuration_alone_refuses_what_the_weights_would(tmp_path: Path) -> None:
    bitsandbytes = replace(FORMATS["awq"], config={"quant_method": "bitsandbytes"})
    _, files = make(tmp_path, bitsandbytes)
    with pytest.raises(InferenceError, match="bitsandbytes"):
        read_config(files)


def test_a_matrix_of_integers_without_a_scheme_is_refused(tmp_path: Path) -> None:
    files = tiny.save(tiny.make("llama"), tmp_path)
    tensors = load_file(files.weights[0]) | {"lm_head.weight": torch.zeros(97, 48, dtype=torch.int8)}
    save_file(tensors, files.weights[0])
    with pytest.raises(InferenceError, match="type I8, but nothing says how to read it"):
        load_model(files)


def test_groups_of_an_unsupported_size_are_named(tmp_path: Path) -> None:
    _, files = make(tmp_path, replace(FORMATS["awq"], group=8))
    with pytest.raises(InferenceError, match=r"layers\.0\.self_attn\.q_proj: 8 scales for 64 inputs"):
        load_model(files)
