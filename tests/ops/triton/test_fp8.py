"""Rounding to float8, products by such weights, and what refuses them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from inference_stack.ops.api import Linear
from inference_stack.ops.triton import fp8
from inference_stack.ops.triton.fp8 import Float8Weight
from tests.ops.triton.projections import error, make_linear, random


@pytest.mark.parametrize(("rows", "depth"), [(1, 1), (3, 70), (5, 1024), (2, 2500)])
def test_rows_are_rounded_as_torch_rounds(rows: int, depth: int) -> None:
    x = random(rows, depth, dtype=torch.float32) * torch.logspace(-9, 9, rows)[:, None]
    codes, scale = fp8.round_rows(x)
    top = x.abs().amax(1, keepdim=True)
    assert torch.allclose(scale, top / 448, rtol=1e-6)
    assert torch.equal(codes.float(), (x * (448 / top)).to(torch.float8_e4m3fn).float())


def test_zeros_stay_zeros_and_broken_rows_become_no_numbers() -> None:
    x = random(4, 1300, dtype=torch.float32)
    x[0] = 0.0
    x[1, 1200], x[2, 3] = torch.nan, torch.inf
    codes, scale = fp8.round_rows(x)
    product = codes.float() * scale
    assert not product[0].any()
    assert not product[1:3].sum(1).isfinite().any()
    assert product[3].isfinite().all()


def test_a_strided_row_is_read_alone() -> None:
    wide = torch.full((3, 64), torch.nan)
    wide[:, :40] = random(3, 40, dtype=torch.float32)
    codes, scale = fp8.round_rows(wide[:, :40])
    whole, wanted = fp8.round_rows(wide[:, :40].contiguous())
    assert torch.equal(codes.float(), whole.float()) and torch.equal(scale, wanted)


@pytest.mark.parametrize("bias", [None, random(37, seed=3, dtype=torch.float32)])
def test_a_weight_keeps_three_bits(bias: Tensor | None) -> None:
    linear, source = make_linear(torch.float32, weights="float8"), random(37, 50, dtype=torch.float32)
    weight, x = Linear(weight=source, bias_N=bias), random(9, 50, seed=1, dtype=torch.float32)
    off = error(linear(x, weight), x, source, bias)
    assert 1e-4 < off < 0.04
    assert isinstance(weight.weight, Float8Weight)
    assert weight.weight.nbytes == 37 * 50 + 37 * 4


def test_every_output_has_its_own_scale() -> None:
    source = random(3, 64, dtype=torch.float32) * torch.tensor([[1e-6], [1.0], [1e6]])
    made = fp8.rounded(source, None, torch.device("cpu"), torch.float32)
    rows = made.rows(torch.tensor([2, 0, 1]))
    assert ((rows - source[[2, 0, 1]]).abs() <= source[[2, 0, 1]].abs().amax(1, keepdim=True) / 16).all()


def test_large_weights_are_rounded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    source = random(37, 50, dtype=torch.float32)
    whole = fp8.rounded(source, None, torch.device("cpu"), torch.float32)
    monkeypatch.setattr(fp8, "PART_BYTES", 1000)
    parts = fp8.rounded(source, None, torch.device("cpu"), torch.float32)
    assert torch.equal(parts.codes_NK.float(), whole.codes_NK.float()) and torch.equal(parts.scale_1N, whole.scale_1N)


def test_the_library_is_given_what_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def scaled_mm(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, *, out: Tensor, **rest: Any) -> None:
        given.update(rest, a=a, b=b, scale_a=scale_a, scale_b=scale_b)
        out.copy_((a.float() * scale_a) @ (b.float() * scale_b))

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    monkeypatch.setattr(fp8, "refuses", lambda *_: None)
    source, x = random(32, 64, dtype=torch.float32), random(5, 64, seed=1, dtype=torch.float32)
    linear, weight = make_linear(torch.float32, weights="float8"), Linear(weight=source)
    assert error(linear(x, weight), x, source) < 0.06
    assert given["a"].is_contiguous() and given["b"].t().is_contiguous()
    assert given["a"].dtype == given["b"].dtype == torch.float8_e4m3fn
    assert given["scale_a"].shape == (5, 1) and given["scale_b"].shape == (1, 32)
    assert given["out_dtype"] == torch.float32


@pytest.mark.parametrize(
    ("capability", "shape", "dtype", "reason"),
    [
        ((8, 0), (64, 64), torch.bfloat16, "older than 8.9"),
        ((9, 0), (64, 40), torch.bfloat16, "multiples of 16"),
        ((9, 0), (64, 64), torch.float16, "float16"),
        ((9, 0), (64, 64), torch.bfloat16, None),
    ],
)
def test_the_library_refuses_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    shape: tuple[int, int],
    dtype: torch.dtype,
    reason: str | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    found = fp8.refuses(torch.device("cuda"), shape, dtype)
    assert found is None if reason is None else found is not None and reason in found
    assert fp8.refuses(torch.device("cpu"), shape, dtype) == "cpu is not an NVIDIA GPU"


def test_deterministic_products_refuse_float8() -> None:
    with pytest.raises(ValueError, match="float8"):
        make_linear(deterministic=True, weights="float8")
