"""linear by humming-kernels, of which a fake does what the package documents: our packing, our refusals, our self-check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from inference_stack.ops.api import Linear, Quantised
from inference_stack.ops.humming import wheel
from inference_stack.ops.humming.implementations import disagreement, humming_implementations
from inference_stack.ops.humming.linear import HummingLinear, HummingWeight
from inference_stack.ops.humming.packing import packed
from inference_stack.ops.humming.wheel import Humming
from inference_stack.ops.implementation import UnsuitableWeight
from inference_stack.ops.reference.quantised import dequantise
from inference_stack.ops.registry import NoImplementation, build_ops, gpu_registry
from inference_stack.ops.triton.linear import DenseWeight
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.triton.w4a16 import PackedWeight
from inference_stack.ops.workspace import Workspace
from tests.engine.emulated import no_reads
from tests.ops.triton.fake_humming.forward import humming_forward
from tests.ops.triton.fake_humming.schema import HummingWeightSchema
from tests.ops.triton.fake_humming.transform import prepare_and_transform_humming_tensors
from tests.ops.triton.projections import error, quantised, random

HALF = TritonSettings(dtype=torch.float16)
CPU = torch.device("cpu")
FAKE = Humming(HummingWeightSchema, prepare_and_transform_humming_tensors, humming_forward)


def workspace() -> Workspace:
    return Workspace(max_tokens=256, max_samples=16)


def make_linear(multiply: Callable[..., Tensor] = humming_forward, settings: TritonSettings = HALF) -> HummingLinear:
    return HummingLinear(workspace(), settings, replace(FAKE, multiply=multiply))


FORMS = {
    "4 bits, zeros": quantised(4, 128, 256, 384, half=False),
    "4 bits, groups of 16": quantised(4, 16, 256, 128, half=False),
    "4 bits, act-order": quantised(4, 32, 256, 128, half=False, shuffled=True),
    "4 bits from zero": quantised(4, 64, 256, 128, zeros=False),
    "4 bits, whole rows": quantised(4, 384, 384, 128, half=False),
    "8 bits": quantised(8, 32, 256, 128, zeros=False),
    "8 bits, zeros": quantised(8, 128, 256, 128, half=False),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("rows", [1, 7])
def test_products_of_every_form(name: str, rows: int) -> None:
    loaded, linear = FORMS[name], make_linear()
    bias_N = random(loaded.shape[0], seed=5, dtype=torch.float32)
    weight, x_TK = Linear(weight=loaded, bias_N=bias_N), random(rows, loaded.shape[1], seed=3)
    y_TN = linear(x_TK, weight)
    assert isinstance(weight.weight, HummingWeight) and weight.weight.shape == loaded.shape
    assert error(y_TN, x_TK, dequantise(loaded), bias_N) < 2e-3


def test_rows_apart_in_memory_and_activations_of_another_type() -> None:
    loaded, linear = FORMS["4 bits, zeros"], make_linear()
    weight, x_TK = Linear(weight=loaded), random(6, 512, seed=3)
    apart = linear(x_TK[::2, :256], weight)
    assert torch.equal(apart, linear(x_TK[::2, :256].contiguous(), weight))
    wide = linear(x_TK[::2, :256].float(), weight)
    assert wide.dtype == torch.float32 and torch.equal(wide.half(), apart)
    assert linear(x_TK[:0, :256], weight).shape == (0, 384)


def test_scales_are_rounded_to_the_activations_type_and_no_more() -> None:
    loaded = FORMS["4 bits, zeros"]
    linear = make_linear(settings=TritonSettings(dtype=torch.bfloat16))
    weight, x_TK = Linear(weight=loaded), random(5, 256, seed=3, dtype=torch.bfloat16)
    assert error(linear(x_TK, weight), x_TK, dequantise(loaded)) < 1e-2


def test_zeros_in_the_middle_are_left_out() -> None:
    scale_NG = torch.rand(128, 4) + 0.1
    middle = replace(FORMS["4 bits, groups of 16"], scale_NG=scale_NG, zero_NG=-8 * scale_NG, group=64)
    assert "zero_point" not in packed(middle, None, CPU, torch.float16).tensors
    assert "zero_point" not in packed(FORMS["8 bits"], None, CPU, torch.float16).tensors
    assert "zero_point" in packed(replace(middle, zero_NG=None), None, CPU, torch.float16).tensors


def test_dense_weights_and_tables_are_tritons() -> None:
    linear = make_linear()
    dense, table = Linear(weight=random(128, 256)), Linear(weight=FORMS["8 bits"], looked_up=True)
    for weight in (dense, table):
        linear.prepare(weight)
    assert isinstance(dense.weight, DenseWeight) and isinstance(table.weight, PackedWeight)
    x_TK = random(3, 256, seed=9)
    assert error(linear(x_TK, dense), x_TK, random(128, 256)) < 2e-3
    assert error(linear(x_TK, table), x_TK, dequantise(FORMS["8 bits"])) < 2e-3


def without(loaded: Quantised, **changes: Any) -> Linear:
    return Linear(weight=replace(loaded, **changes))


def test_what_it_cannot_hold_is_refused_in_words() -> None:
    linear, loaded = make_linear(), FORMS["4 bits, zeros"]
    scale_NG = loaded.scale_NG
    with pytest.raises(UnsuitableWeight, match="whole codes; some of this weight lie between two"):
        linear.prepare(without(loaded, zero_NG=-7.25 * scale_NG))
    with pytest.raises(UnsuitableWeight, match="among the codes of 4 bits"):
        linear.prepare(without(loaded, zero_NG=-16 * scale_NG))
    with pytest.raises(UnsuitableWeight, match="between two"):
        linear.prepare(without(loaded, zero_NG=-7 * scale_NG, scale_NG=torch.zeros_like(scale_NG)))
    with pytest.raises(UnsuitableWeight, match="multiples of 128; this weight is 96×256"):
        linear.prepare(Linear(weight=quantised(4, 32, 256, 96)))
    with pytest.raises(UnsuitableWeight, match="groups of 48"):
        linear.prepare(Linear(weight=quantised(4, 48, 384, 128)))
    with pytest.raises(TypeError, match="looked up"):
        weight = without(loaded)
        linear.prepare(weight)
        weight.weight.rows(torch.arange(2))  # type: ignore[union-attr]


def test_nothing_waits_for_the_device_and_forms_are_compared_once() -> None:
    calls: list[int] = []

    def multiply(*asked: Any, **named: Any) -> Tensor:
        calls.append(named["inputs"].shape[0])
        return humming_forward(*asked, **named)

    linear = make_linear(multiply)
    first, second = without(FORMS["8 bits"]), without(FORMS["8 bits"])
    linear.prepare(first)
    compared = len(calls)
    linear.prepare(second)
    assert len(calls) == compared > 1
    assert isinstance(second.weight, HummingWeight)
    second.weight = replace(second.weight, humming=replace(FAKE, multiply=lambda *_, outputs, **__: outputs))
    x_TK = random(3, 256)
    with no_reads():
        assert linear(x_TK, second).shape == (3, 128)


def test_a_weight_whose_product_is_wrong_is_not_served() -> None:
    def wrong(*asked: Any, outputs: Tensor, **named: Any) -> Tensor:
        humming_forward(*asked, outputs=outputs, **named)
        if len(outputs) > 100:
            outputs[:, 0] *= 2
        return outputs

    with pytest.raises(
        UnsuitableWeight, match=r"8-bit weights of 128×256 in groups of 32, 200 rows: by .* 0.01 is allowed"
    ):
        make_linear(wrong).prepare(without(FORMS["8 bits"]))


WRONG: dict[str, Callable[..., Tensor]] = {
    "nothing is written": lambda *_, outputs, **__: outputs,
    "no zeros": lambda *asked, zero_point=None, **named: humming_forward(*asked, **named),
    "no bias": lambda *asked, bias=None, **named: humming_forward(*asked, **named),
    "half as much": lambda *asked, inputs, **named: humming_forward(*asked, inputs=inputs / 2, **named),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_self_check_finds_who_is_wrong(name: str) -> None:
    found = disagreement(replace(FAKE, multiply=WRONG[name]), CPU, torch.float16)
    assert "its self-check failed: UnsuitableWeight: humming differs from the reference" in str(found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_self_check_trusts_who_is_right_and_reports_what_is_raised(dtype: torch.dtype) -> None:
    assert disagreement(FAKE, CPU, dtype) is None

    def no_compiler(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("nvcc")

    assert "FileNotFoundError: nvcc" in str(disagreement(replace(FAKE, prepare=no_compiler), CPU, dtype))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake in the package's place, on a card of which the CPU plays the part."""
    monkeypatch.setattr(wheel, "ROOT", "tests.ops.triton.fake_humming")
    monkeypatch.setattr(wheel, "refuses_card", lambda *_: None)


@pytest.mark.usefixtures("installed")
def test_named_and_trusted_it_multiplies() -> None:
    ops = build_ops(workspace(), registry=gpu_registry(HALF), prefer={"linear": "humming"})
    assert ops.explain()["linear"] == "humming: preferred by configuration"
    weight, x_TK = without(FORMS["4 bits, zeros"]), random(3, 256)
    ops.prepare(weight)
    assert isinstance(weight.weight, HummingWeight)
    assert error(ops.linear(x_TK, weight), x_TK, dequantise(FORMS["4 bits, zeros"])) < 2e-3


def test_it_is_never_taken_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("nobody named it")

    monkeypatch.setattr(wheel, "refuses_card", asked)
    monkeypatch.setattr(wheel, "humming", asked)
    assert build_ops(workspace(), registry=gpu_registry(HALF)).explain()["linear"].startswith("triton:")


def refusal(settings: TritonSettings = HALF, device: torch.device = CPU) -> str | None:
    [one] = humming_implementations(settings)
    return one.refuses(device)


def test_refusals_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "deterministic" in str(refusal(replace(HALF, deterministic=True)))
    assert "float8" in str(refusal(replace(HALF, weights="float8")))
    assert "torch.float32" in str(refusal(TritonSettings(dtype=torch.float32)))
    assert refusal() == "it runs on NVIDIA GPUs"
    card = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert refusal(TritonSettings(dtype=torch.bfloat16), card) == "compute capability 7.5 is older than 8.0"
    monkeypatch.setattr(wheel, "ROOT", "no_such_package_at_all")
    assert refusal(device=card) == "humming-kernels is not installed"


def test_a_package_that_cannot_be_loaded_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(wheel, "refuses_card", lambda *_: None)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_humming.py").write_text("raise RuntimeError('no CUDA toolkit')")
    monkeypatch.setattr(wheel, "ROOT", "broken_humming")
    assert refusal() == "humming-kernels cannot be loaded: RuntimeError: no CUDA toolkit"
    with pytest.raises(NoImplementation, match="humming refuses: humming-kernels cannot be loaded"):
        build_ops(workspace(), registry=gpu_registry(HALF), prefer={"linear": "humming"})
