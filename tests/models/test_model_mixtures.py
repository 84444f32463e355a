"""What checkpoints store of experts: every layout gives the same model; MXFP4 is exact; what cannot be honoured is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from inference_stack.artifacts.files import ModelFiles
from inference_stack.core.errors import InferenceError
from inference_stack.models.api import LoadedModel
from inference_stack.models.config import ExpertsConfig
from inference_stack.models.loader import load_model, read_config
from inference_stack.models.outline import outline_of
from inference_stack.models.refusals import REASONS
from inference_stack.ops.api import Linear, Mxfp4
from inference_stack.ops.reference import mxfp4
from tests.models import tiny
from tests.models.paged import PagedModel
from tests.models.reference import ops

PROMPT = tiny.tokens(40, seed=3)


def edit_config(files: ModelFiles, **changes: Any) -> None:
    path = files.root / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(files: ModelFiles, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(files.weights[0])
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, files.weights[0])


def refusal(files: ModelFiles) -> str:
    with pytest.raises(InferenceError) as caught:
        load_model(files)
    assert caught.value.info.code == "unsupported_model"
    return caught.value.info.message


def logits(loaded: LoadedModel) -> Tensor:
    return PagedModel(loaded.model, ops(), rows=1, max_tokens=64).step([PROMPT])


@pytest.mark.parametrize(("family", "names"), [("qwen3-moe", ("gate", "up", "down")), ("mixtral", ("w1", "w3", "w2"))])
def test_stacked_tensors_mean_the_same_as_one_for_each_expert(
    family: str, names: tuple[str, str, str], tmp_path: Path
) -> None:
    files = tiny.save(tiny.make(family), tmp_path)
    separate = logits(load_model(files))

    def stack(tensors: dict[str, Tensor]) -> None:
        suffix = "_proj" if family == "qwen3-moe" else ""
        for name in [name for name in tensors if name.endswith(f".experts.0.{names[0]}{suffix}.weight")]:
            prefix = name.split(".experts.")[0]
            gate, up, down = (
                torch.stack([
                    tensors.pop(f"{prefix}.experts.{expert}.{part}{suffix}.weight")
                    for expert in range(5 if family == "mixtral" else 6)
                ])
                for part in names
            )  # fmt: skip
            to = prefix.replace("block_sparse_moe", "mlp")
            tensors[f"{to}.gate.weight"] = tensors.pop(f"{prefix}.gate.weight")
            tensors[f"{to}.experts.gate_up_proj"] = torch.cat((gate, up), dim=1)
            tensors[f"{to}.experts.down_proj"] = down

    edit_weights(files, stack)
    assert torch.equal(logits(load_model(files)), separate)


def random_mxfp4(shape: tuple[int, int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Blocks [X, N, K/32, 16] and scales [X, N, K/32]."""
    experts, rows, width = shape
    draw = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (experts, rows, width // 32, 16), generator=draw, dtype=torch.uint8)
    return blocks, torch.randint(121, 126, (experts, rows, width // 32), generator=draw, dtype=torch.uint8)


@pytest.fixture(scope="module")
def fp4(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFiles, Tensor]:
    """A gpt-oss checkpoint in MXFP4, and the logits of the same numbers in transformers."""
    oracle = tiny.make("gpt-oss")
    files = tiny.save(oracle, tmp_path_factory.mktemp("fp4"))
    tensors = load_file(files.weights[0])
    for layer, block in enumerate(oracle.model.layers):
        for seed, side in enumerate(("gate_up_proj", "down_proj")):
            dense = getattr(block.mlp.experts, side)
            experts, width, rows = dense.shape
            blocks, scales = random_mxfp4((experts, rows, width), seed + 10 * layer)
            dense.data = mxfp4.dequantise(blocks.flatten(2), scales).mT.contiguous()
            name = f"model.layers.{layer}.mlp.experts.{side}"
            del tensors[name]
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, files.weights[0])
    edit_config(files, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    return files, tiny.oracle_logits(oracle, PROMPT)


def test_mxfp4_made_dense_equals_transformers(fp4: tuple[ModelFiles, Tensor]) -> None:
    loaded = load_model(fp4[0], dequantise=True)
    assert "fp32 from mxfp4" in loaded.quantisation
    torch.testing.assert_close(logits(loaded), fp4[1], rtol=1e-4, atol=2e-4)


def test_mxfp4_stays_as_it_is(fp4: tuple[ModelFiles, Tensor]) -> None:
    loaded = load_model(fp4[0])
    assert loaded.quantisation.startswith("mxfp4")
    assert all(isinstance(one.gate_up, Mxfp4) and isinstance(one.down, Mxfp4) for one in loaded.experts)
    difference = logits(loaded) - fp4[1]
    assert difference.norm() < 5e-2 * fp4[1].norm()  # activations are rounded too


@pytest.mark.parametrize("family", ["qwen3-moe", "gpt-oss"])
def test_dense_experts_keep_their_type_and_are_prepared_once(family: str, tmp_path: Path) -> None:
    files = tiny.save(tiny.make(family).to(torch.bfloat16), tmp_path)
    prepared: list[object] = []
    loaded = load_model(files, prepare=prepared.append)
    assert loaded.quantisation == "bf16"
    assert all(isinstance(one.down, Tensor) and one.down.dtype == torch.bfloat16 for one in loaded.experts)
    assert len(loaded.experts) == 3 and all(
        [id(one) for one in prepared].count(id(made)) == 1 for made in loaded.experts
    )
    stored = sum(tensor.numel() * 2 for name, tensor in load_file(files.weights[0]).items() if ".experts." in name)
    assert loaded.weight_bytes > stored


def test_group_quantised_experts_stay_separate(tmp_path: Path) -> None:
    files = tiny.save(tiny.make("qwen3-moe", hidden_size=64, moe_intermediate_size=64), tmp_path)
    dense = logits(load_model(files))

    def quantise(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".experts." in name]:
            weight = tensors.pop(name)
            module = name.removesuffix(".weight")
            scale = weight.abs().amax(1, keepdim=True) / 127
            tensors[f"{module}.weight"] = (weight / scale).round().to(torch.int8)
            tensors[f"{module}.weight_scale"] = scale

    edit_weights(files, quantise)
    group = {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}, "format": "int-quantized"}
    edit_config(
        files,
        quantization_config={
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "config_groups": {"group_0": group},
        },
    )
    loaded = load_model(files)
    gate_up = loaded.experts[0].gate_up
    assert isinstance(gate_up, tuple) and all(isinstance(one, Linear) for one in gate_up)
    assert (logits(loaded) - dense).norm() < 0.15 * dense.norm()  # a token may choose another expert


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    files = tiny.save(tiny.make("mixtral"), tmp_path)
    edit_weights(files, lambda tensors: tensors.pop("model.layers.1.block_sparse_moe.experts.3.w3.weight"))
    assert "no tensor 'model.layers.1.block_sparse_moe.experts.3.w3.weight'" in refusal(files)


def test_a_stack_of_another_shape_is_named(tmp_path: Path) -> None:
    files = tiny.save(tiny.make("gpt-oss"), tmp_path)
    edit_config(files, num_local_experts=4)
    assert "[5, 64]; the configuration asks for [4, 64]" in refusal(files)


def test_configurations_of_experts(tmp_path: Path) -> None:
    files = tiny.save(tiny.make("qwen3-moe-mixed"), tmp_path)
    edit_config(files, mlp_only_layers=[1])
    assert read_config(files).experts == ExpertsConfig(
        count=6, chosen=2, width=40, normalised=False, dense_layers=(0, 1, 2)
    )


def test_what_gpt_oss_means_where_its_file_says_nothing(tmp_path: Path) -> None:
    files = tiny.save(tiny.make("gpt-oss"), tmp_path)
    raw = json.loads((files.root / "config.json").read_text())
    for key in ("layer_types", "rope_parameters", "swiglu_alpha", "swiglu_limit", "attention_bias"):
        raw.pop(key, None)
    (files.root / "config.json").write_text(json.dumps(raw))
    config = read_config(files)
    assert config.windows == (20, None, 20) and config.attention_bias
    assert (config.rope.kind, config.rope.theta, config.rope.truncate) == ("yarn", 150000.0, False)
    assert config.experts is not None and config.experts.clamp == (1.702, 7.0)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "needs 'num_experts_per_tok' between 1 and 5": ("mixtral", {"num_experts_per_tok": 6}),
    "needs 'num_local_experts' between 1 and 256": ("mixtral", {"num_local_experts": 300}),
    "mlp_only_layers 'all' is no list": ("qwen3-moe", {"mlp_only_layers": "all"}),
    "needs 'decoder_sparse_step' between 1": ("qwen3-moe", {"decoder_sparse_step": 0}),
    "gpt-oss with the activation 'gelu_tanh'": ("gpt-oss", {"hidden_act": "gelu_tanh"}),
    "A swiglu_limit of 0.0": ("gpt-oss", {"swiglu_limit": 0.0}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(reason: str, tmp_path: Path) -> None:
    family, changes = REFUSED[reason]
    files = tiny.save(tiny.make(family), tmp_path)
    edit_config(files, **changes)
    assert reason in refusal(files)


@pytest.mark.parametrize("name", ["Qwen3NextForCausalLM", "JambaForCausalLM", "DeepseekV3ForCausalLM"])
def test_architectures_with_other_state_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    files = tiny.save(tiny.make("llama"), tmp_path)
    edit_config(files, architectures=[name])
    assert refusal(files) == f"Architecture not supported: {name} has {REASONS[name]}."


def test_mixtures_cannot_be_quantised(tmp_path: Path) -> None:
    config = read_config(tiny.save(tiny.make("mixtral"), tmp_path))
    with pytest.raises(InferenceError, match="Mixtures of experts cannot be quantised here"):
        outline_of(config)
