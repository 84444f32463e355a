from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inference_stack.artifacts.files import ModelFiles
from inference_stack.artifacts.resolve import resolve
from inference_stack.core.errors import InferenceError
from inference_stack.models.export import Exported, export
from inference_stack.models.loader import load_model, state_dict
from inference_stack.models.quantise import Curvature, Target, nearest, quantise, target
from inference_stack.models.safetensors_writer import Declared, Item, write_safetensors
from inference_stack.ops.api import Quantised
from inference_stack.ops.reference.quantised import dequantise
from tests.models import tiny
from tests.models.gguf_maker import Kind
from tests.models.gguf_maker import write as write_gguf
from tests.models.paged import PagedModel
from tests.models.reference import ops

WIDE = {"hidden_size": 64, "intermediate_size": 128}


def weights(rows: int = 48, columns: int = 256, seed: int = 1) -> Tensor:
    """Like trained ones: roughly normal, a few far out."""
    draw = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, columns, generator=draw) * 0.02
    return normal * (1 + 4 * (torch.rand(rows, columns, generator=draw) > 0.99))


def inputs(columns: int = 256, seed: int = 2) -> Tensor:
    """Correlated activations of very different sizes."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(400, columns, generator=draw) @ torch.randn(columns, columns, generator=draw) / columns**0.5
    return mixed * torch.rand(columns, generator=draw).pow(3)


def curvature(x_TK: Tensor, block: int) -> Curvature:
    parts = x_TK.split(block, 1)
    return Curvature([part.T @ part for part in parts])


def error(found: Tensor, w_NK: Tensor, x_TK: Tensor | None = None) -> float:
    difference = found - w_NK
    return float((difference if x_TK is None else x_TK @ difference.T).square().mean())


@pytest.mark.parametrize("name", ["w4g32", "w4g64", "w4g128", "w8"])
def test_searching_ranges_beats_rounding_to_nearest(name: str) -> None:
    w_NK, form = weights(), target(name)
    group = form.group or 256
    plain = error(nearest(w_NK, form, group).dequantised(), w_NK)
    # Nothing is gained by cutting off what 8 bits hold; the scale's own rounding is all that can be improved.
    assert error(quantise(w_NK, form, group).dequantised(), w_NK) < (0.95 if form.bits == 4 else 1.0) * plain


@pytest.mark.parametrize("name", ["w4g64", "w8"])
def test_knowing_the_inputs_makes_products_better_still(name: str) -> None:
    w_NK, x_TK, form = weights(), inputs(), target(name)
    group = form.group or 256
    blind = quantise(w_NK, form, group).dequantised()
    seeing = quantise(w_NK, form, group, curvature(x_TK, 256)).dequantised()
    assert error(seeing, w_NK, x_TK) < 0.5 * error(blind, w_NK, x_TK)


def test_larger_blocks_of_columns_make_up_for_more() -> None:
    w_NK, x_TK, form = weights(), inputs(), target("w4g64")
    errors = [error(quantise(w_NK, form, 64, curvature(x_TK, size)).dequantised(), w_NK, x_TK) for size in (64, 256)]
    assert errors[1] < errors[0]


def test_several_threads_choose_the_same_codes() -> None:
    w_NK, form, seen = weights(rows=700), target("w4g64"), curvature(inputs(), 128)
    with ThreadPoolExecutor(2) as pool:
        found = [quantise(w_NK, form, 64, seen, chosen) for chosen in (None, pool)]
    assert torch.equal(found[0].dequantised(), found[1].dequantised())


def test_inputs_that_never_occur_do_no_harm() -> None:
    w_NK, form = weights(), target("w4g64")
    found = quantise(w_NK, form, 64, curvature(torch.zeros(4, 256), 128)).dequantised()
    assert error(found, w_NK) < error(torch.zeros(1), w_NK) / 50


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.7, -3.0])
def test_groups_of_one_number_keep_it(value: float) -> None:
    w_NK = torch.full((2, 64), value)
    for name in ("w4g32", "w8"):
        form = target(name)
        torch.testing.assert_close(quantise(w_NK, form, 32).dequantised(), w_NK, rtol=0.02, atol=1e-5)


def test_scales_are_exact_in_16_bits_and_so_are_scaled_zero_points() -> None:
    codes = quantise(weights(), target("w4g32"), 32)
    scaled = codes.scale_NG * codes.zero_NG
    for tensor, dtype in ((codes.scale_NG, torch.bfloat16), (codes.scale_NG, torch.float16), (scaled, torch.float16)):
        assert torch.equal(tensor.to(dtype).to(torch.float32), tensor)


@pytest.mark.parametrize("name", ["w5", "w4", "w8g64", "w4g48", ""])
def test_other_forms_are_refused(name: str) -> None:
    with pytest.raises(InferenceError, match="--to: expected one of"):
        target(name)


def written(files: ModelFiles, folder: Path, form: Target | str) -> Exported:
    folder.mkdir()
    exported = export(files, target(form) if isinstance(form, str) else form, folder)
    (folder / "config.json").write_text(json.dumps(exported.config))
    return exported


@pytest.mark.parametrize("form", [target("w4g32"), target("w4g64"), target("w4g32", symmetric=True), target("w8")])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_what_was_written_is_read_as_exactly_what_was_chosen(family: str, form: Target, tmp_path: Path) -> None:
    changes = WIDE | ({"head_dim": 32} if family == "gemma3" else {})
    files = tiny.save(tiny.make(family, **changes), tmp_path / "source")
    source = state_dict(files)
    exported = written(files, tmp_path / "out", form)
    found = state_dict(resolve(str(tmp_path / "out")))
    half = torch.bfloat16 if exported.dtype == "bf16" else torch.float16
    assert found.keys() == source.keys()
    for key, w_NK in source.items():
        if w_NK.dim() == 2 and "embed" not in key and "lm_head" not in key:
            group = form.group or w_NK.shape[1]
            assert torch.equal(found[key], quantise(w_NK, form, group).dequantised()), key
        else:
            assert torch.equal(found[key], w_NK.to(half).to(torch.float32) if w_NK.dim() == 2 else w_NK), key


def test_it_is_executed_quantised_with_scales_in_two_bytes(tmp_path: Path) -> None:
    files = tiny.save(tiny.make("llama", **WIDE), tmp_path / "source")
    written(files, tmp_path / "out", "w4g32")
    loaded = load_model(resolve(str(tmp_path / "out")))
    assert loaded.quantisation == "w4g32 from compressed-tensors, fp16"
    parts = [linear.weight for linear in loaded.linears if isinstance(linear.weight, Quantised)]
    assert len(parts) == 12
    assert {part.scale_NG.dtype for part in parts} == {torch.float16}
    assert all(dequantise(part).isfinite().all() for part in parts)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama-linear-rope", {}),
        ("llama-yarn", {}),
        ("llama-biased", {}),
        ("mistral-window", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gemma3", {"num_hidden_layers": 6, "sliding_window_pattern": 6, "query_pre_attn_scalar": 32}),
    ],
)
def test_the_configuration_of_a_gguf_file_is_written_out(family: str, changes: dict[str, int], tmp_path: Path) -> None:
    model = tiny.make(family, **WIDE, **changes)
    files = write_gguf(model, tmp_path / "source.gguf", Kind.F16)
    written(files, tmp_path / "out", "w8")
    prompt = tiny.tokens(40, seed=3)
    logits = [
        PagedModel(load_model(one, dequantise=True).model, ops(), rows=1, max_tokens=64).step([prompt]).log_softmax(-1)
        for one in (files, resolve(str(tmp_path / "out")))
    ]
    # The rounding of 8 bits is all that may differ; a wrong rope, window, bias or norm shows far above it.
    divergence = (logits[0].exp() * (logits[0] - logits[1])).sum(-1).mean()
    assert divergence < 6e-3


def test_llama3_rope_of_a_gguf_file_is_recognised(tmp_path: Path) -> None:
    rope = tiny.LLAMA3 | {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    model = tiny.make("llama3-rope", **WIDE, rope_parameters=rope)
    exported = written(write_gguf(model, tmp_path / "source.gguf", Kind.F16), tmp_path / "out", "w8")
    assert exported.config["rope_scaling"]["rope_type"] == "llama3"
    assert exported.config["rope_scaling"]["factor"] == 8.0


def test_other_rope_divisors_are_refused(tmp_path: Path) -> None:
    files = write_gguf(tiny.make("llama3-rope", **WIDE), tmp_path / "source.gguf", Kind.F16)
    with pytest.raises(InferenceError, match="rotary frequencies are not Llama 3's"):
        written(files, tmp_path / "out", "w8")


def test_a_quantised_source_is_dequantised_and_says_so(tmp_path: Path) -> None:
    files = write_gguf(tiny.make("llama", **WIDE), tmp_path / "source.gguf", Kind.Q8_0)
    assert written(files, tmp_path / "out", "w4g32").dequantised == ("Q8_0",)
    again = written(resolve(str(tmp_path / "out")), tmp_path / "again", "w8")
    assert again.dequantised == ("compressed-tensors",)
    assert load_model(resolve(str(tmp_path / "again"))).quantisation.startswith("w8g64 from compressed-tensors")


def test_groups_that_do_not_divide_a_matrix_are_refused_with_advice(tmp_path: Path) -> None:
    files = tiny.save(tiny.make("llama", **WIDE), tmp_path / "source")
    with pytest.raises(
        InferenceError, match=r"q_proj has 64 inputs, which w4g128 does not divide; use --to w4g64 or w4g32"
    ):
        written(files, tmp_path / "out", "w4g128")


def test_tensors_that_would_be_lost_are_refused(tmp_path: Path) -> None:
    files = tiny.save(tiny.make("qwen3", **WIDE), tmp_path / "source")
    config = json.loads((tmp_path / "source/config.json").read_text())
    (tmp_path / "source/config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(InferenceError, match=r"Unexpected tensors.*self_attn\.k_norm\.weight"):
        written(files, tmp_path / "out", "w8")


def test_tensors_are_spread_over_files_with_an_index(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.full((3, 5), float(number)) for number in range(5)}
    items = [Item({name: Declared(torch.float32, (3, 5))}, lambda name=name: {name: tensors[name]}) for name in tensors]
    assert write_safetensors(tmp_path, items, shard_bytes=130) == 300
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    from safetensors.torch import load_file

    from inference_stack.artifacts.safetensors_files import stored_tensors, weight_files

    assert stored_tensors(weight_files(tmp_path)).keys() == tensors.keys()
    found = {name: value for path in weight_files(tmp_path) for name, value in load_file(path).items()}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_tensor_that_is_not_as_declared_is_not_written(tmp_path: Path) -> None:
    item = Item({"t": Declared(torch.float16, (2,))}, lambda: {"t": torch.zeros(2)})
    with pytest.raises(ValueError, match="declared as"):
        write_safetensors(tmp_path, [item])


@pytest.mark.parametrize("form", [target("w4g32"), target("w4g32", symmetric=True), target("w8")])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_transformers_loads_it_and_computes_the_same(family: str, form: Target, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    files = tiny.save(tiny.make(family, **WIDE), tmp_path / "source")
    written(files, tmp_path / "out", form)
    # compressed-tensors 0.20 expects packed zero points in their unpacked shape, unless weights are dequantised on loading.
    chosen = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if form.zeros else {}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, **chosen)
    ours = load_model(resolve(str(tmp_path / "out")), dequantise=True)
    prompt = tiny.tokens(40, seed=5)
    logits_TV = PagedModel(ours.model, ops(), rows=1, max_tokens=64).step([prompt])
    torch.testing.assert_close(logits_TV, tiny.oracle_logits(theirs.eval(), prompt), rtol=1e-3, atol=2e-3)
