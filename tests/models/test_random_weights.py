"""Models drawn from a seed: whole, repeatable, finite, of the form that was asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inference_stack.artifacts.files import ModelFiles
from inference_stack.artifacts.resolve import resolve
from inference_stack.core.errors import InferenceError
from inference_stack.frontend.load import load_frontend
from inference_stack.models.api import LoadedModel
from inference_stack.models.config import HF_ARCHITECTURES, ModelConfig, config_from_hf
from inference_stack.models.loader import load_model
from inference_stack.models.random_weights import load_random
from inference_stack.ops.api import Linear, Quantised
from inference_stack.ops.reference.quantised import dequantise
from tests.models import tiny
from tests.models.paged import PagedModel
from tests.models.reference import ops

FAMILIES = ("llama", "llama-biased", "mistral-window", "qwen2", "qwen3", "gemma3-mixed")
SHAPES = Path(__file__).parents[2] / "bench" / "gpu" / "shapes"


def config(family: str = "llama", **options: object) -> ModelConfig:
    model = tiny.make(family, **options)
    return config_from_hf(model.config.to_dict() | {"architectures": [type(model).__name__]})


def wide() -> ModelConfig:
    return config(hidden_size=128, intermediate_size=256, head_dim=32)


def dense(linear: Linear) -> torch.Tensor:
    if isinstance(linear.weight, Quantised):
        return dequantise(linear.weight)
    assert isinstance(linear.weight, torch.Tensor)
    return linear.weight


def logits(loaded: LoadedModel) -> torch.Tensor:
    return PagedModel(loaded.model, ops(), rows=1, max_tokens=32).step([tiny.tokens(20, seed=1)])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_computes_something_finite(family: str) -> None:
    loaded = load_random(config(family), torch.float32)
    logits_TV = logits(loaded)
    assert logits_TV.isfinite().all()
    assert logits_TV.std() > 1e-3


def test_the_seed_and_nothing_else_decides() -> None:
    first, again, other = (load_random(config(), torch.float32, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(logits(first), logits(again))
    assert first.revision == again.revision
    assert not torch.equal(logits(first), logits(other))
    assert first.revision != other.revision


def test_another_type_or_form_is_another_revision() -> None:
    revisions = {load_random(wide(), dtype).revision for dtype in (torch.bfloat16, torch.float16)}
    assert len({*revisions, load_random(wide(), quantise="w4g128").revision}) == 3


def test_tensors_differ_and_are_as_small_as_trained_ones() -> None:
    loaded = load_random(config(), torch.float32)
    weights = [dense(linear) for linear in loaded.linears]
    assert all(0.018 < weight.std() < 0.022 for weight in weights)
    assert len({weight.flatten()[0].item() for weight in weights}) == len(weights)


def test_norms_are_close_to_one_and_biases_to_nothing() -> None:
    loaded = load_random(config("qwen2"), torch.float32)
    block = loaded.model.blocks[0]  # type: ignore[attr-defined]
    assert (block.input_norm_D - 1).abs().max() < 0.1
    assert 0 < block.attention.qkv.bias_N.abs().max() < 0.1


def test_a_norm_that_is_kept_less_one_is_close_to_one_too() -> None:
    block = load_random(config("gemma3-mixed")).model.blocks[0]  # type: ignore[attr-defined]
    assert (block.input_norm_D - 1).abs().max() < 0.1


@pytest.mark.parametrize("form", ["w4g128", "w4g32", "w8g64"])
def test_projections_can_be_codes(form: str) -> None:
    loaded = load_random(wide(), quantise=form)
    quantised = [linear for linear in loaded.linears if isinstance(linear.weight, Quantised)]
    assert loaded.quantisation == f"{form} from random, bf16 from random"
    assert len(quantised) == len(loaded.linears) - 2
    for linear in quantised:
        values = dense(linear)
        assert 0.015 < values.std() < 0.027
        assert values.mean().abs() < 0.002
    assert logits(loaded).isfinite().all()


def test_codes_take_every_value() -> None:
    weight = load_random(wide(), quantise="w4g128").linears[1].weight
    assert isinstance(weight, Quantised)
    assert set((weight.codes & 15).flatten().tolist()) == set(range(16))
    assert weight.scale_NG.dtype == torch.float16
    assert weight.zero_NG is not None


@pytest.mark.parametrize("form", ["w3g128", "w4", "w4g100", "float6", ""])
def test_a_form_that_nobody_knows_is_refused(form: str) -> None:
    with pytest.raises(InferenceError, match="cannot be"):
        load_random(wide(), quantise=form)


def test_a_group_that_does_not_divide_is_refused_by_name() -> None:
    with pytest.raises(InferenceError, match=r"q_proj\.weight has 48 inputs"):
        load_random(config(), quantise="w4g128")


def test_a_type_that_weights_cannot_have_is_refused() -> None:
    with pytest.raises(InferenceError, match="cannot be kept"):
        load_random(config(), torch.int8)


def test_every_weight_is_prepared_once() -> None:
    prepared: list[int] = []
    loaded = load_random(config(), prepare=lambda linear: prepared.append(id(linear)))
    assert sorted(prepared) == sorted(id(linear) for linear in loaded.linears)


def test_positions_can_be_fewer() -> None:
    assert load_random(config(), max_positions=32).model.max_positions == 32


@pytest.mark.parametrize("path", sorted(SHAPES.glob("*.json")), ids=lambda path: path.stem)
def test_a_shape_of_the_benchmarks_can_be_drawn_with_one_layer(path: Path) -> None:
    raw = json.loads(path.read_text())
    if raw["architectures"][0] not in HF_ARCHITECTURES:
        pytest.skip("not an architecture that is served yet")
    raw |= {"num_experts": 8, "moe_intermediate_size": 128} if "num_experts" in raw else {}
    whole = config_from_hf(raw)
    small = replace(whole, windows=whole.windows[:1], vocab_size=64, intermediate_size=256, max_positions=64)
    assert load_random(small).weight_bytes > 1 << 20


def parameters(raw: dict[str, int]) -> int:
    """Of a dense decoder, norms and biases aside."""
    hidden, kv = raw["hidden_size"], raw["num_key_value_heads"]
    head = raw.get("head_dim", hidden // raw["num_attention_heads"])
    attention = 2 * hidden * head * (raw["num_attention_heads"] + kv)
    inner = raw.get("moe_intermediate_size", raw["intermediate_size"]) * raw.get("num_experts", 1)
    tables = raw["vocab_size"] * hidden * (1 if raw["tie_word_embeddings"] else 2)
    return tables + raw["num_hidden_layers"] * (attention + 3 * hidden * inner)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-3.1-8b", 8.03),
        ("qwen3-8b", 8.19),
        ("qwen2.5-7b", 7.62),
        ("qwen3-30b-a3b", 30.5),
        ("smollm2-135m", 0.1345),
    ],
)
def test_shapes_have_as_many_parameters_as_is_published(name: str, billions: float) -> None:
    raw = json.loads((SHAPES / f"{name}.json").read_text())
    assert parameters(raw) / 1e9 == pytest.approx(billions, rel=2e-3)


def weightless(root: Path, **changes: object) -> ModelFiles:
    raw = tiny.make("llama").config.to_dict() | {"architectures": ["LlamaForCausalLM"]} | changes
    (root / "config.json").write_text(json.dumps(raw))
    return resolve(str(root), root, load_format="random")


@pytest.mark.parametrize(("named", "dtype"), [("float16", torch.float16), (None, torch.bfloat16)])
def test_a_directory_of_a_configuration_is_a_model(tmp_path: Path, named: str | None, dtype: torch.dtype) -> None:
    loaded = load_model(weightless(tmp_path, torch_dtype=None, dtype=named), max_positions=40)
    assert isinstance(loaded.linears[0].weight, torch.Tensor)
    assert loaded.linears[0].weight.dtype == dtype
    assert loaded.model.max_positions == 40
    assert loaded.quantisation.endswith("from random")


def test_weights_that_are_there_are_left_alone(tmp_path: Path) -> None:
    tiny.save(tiny.make("llama"), tmp_path)
    files = resolve(str(tmp_path), tmp_path, load_format="random")
    assert files.total_bytes == 0
    assert load_model(files).quantisation == "fp32 from random"


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"quantization_config": {"quant_method": "awq"}}, "take quantization_config out"), ({"dtype": "int8"}, "'int8'")],
)
def test_a_configuration_that_weights_cannot_be_drawn_for_is_refused(
    tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(InferenceError, match=told):
        load_model(weightless(tmp_path, **changes))


def test_random_weights_need_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match=r"directory with a config\.json"):
        resolve(str(tmp_path), tmp_path, load_format="random")


def test_a_directory_without_weights_says_how_to_draw_them(tmp_path: Path) -> None:
    weightless(tmp_path)
    with pytest.raises(InferenceError, match=r"engine\.load_format random"):
        resolve(str(tmp_path), tmp_path)


def test_a_model_without_a_tokenizer_says_that_it_needs_one(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="a served model needs a tokenizer"):
        load_frontend(weightless(tmp_path))
