"""Embedding, selection, norms and activations on the device's terms, against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inference_stack.ops.api import Linear
from inference_stack.ops.reference import activation, norms
from inference_stack.ops.triton.activation import ActMul
from inference_stack.ops.triton.norms import AddRmsNorm, RmsNorm
from inference_stack.ops.triton.rows import Embed, Select
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace

HALF = TritonSettings(dtype=torch.float16)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}


def workspace() -> Workspace:
    return Workspace(max_tokens=64, max_samples=64)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 8.5])
def test_embed_rounds_scaled_rows_once(dtype: torch.dtype, scale: float) -> None:
    table, tokens = draw(50, 1027).to(dtype), torch.tensor([49, 0, 7, 7])
    found = Embed(workspace(), HALF)(tokens, Linear(weight=table), scale)
    assert torch.equal(found, (table[tokens].float() * scale).half())


@pytest.mark.parametrize("rows", [[], [4, 0, 4]])
def test_select_copies_rows_of_a_strided_tensor(rows: list[int]) -> None:
    x, index = draw(5, 90)[:, 3:70], torch.tensor(rows, dtype=torch.int64)
    assert torch.equal(Select(workspace(), HALF)(x, index), x[index])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [1, 577, 4096])
def test_norms(dtype: torch.dtype, width: int) -> None:
    x, residual, weight = draw(3, width + 2).to(dtype)[:, :width], draw(3, width, seed=2).to(dtype), draw(width)
    found = RmsNorm(workspace(), HALF)(x, weight, 1e-5)
    assert found.dtype == dtype
    expected = norms.rmsnorm(workspace(), x.float(), weight, 1e-5)
    torch.testing.assert_close(found.float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    found, total = AddRmsNorm(workspace(), HALF)(x, residual, weight, 1e-5)
    expected, _ = norms.add_rmsnorm(workspace(), x.float(), residual.float(), weight, 1e-5)
    assert torch.equal(total, (x.float() + residual.float()).to(dtype))
    torch.testing.assert_close(found.float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_rows_too_wide_for_a_norm_are_refused() -> None:
    with pytest.raises(ValueError, match="16384"):
        RmsNorm(workspace(), HALF)(torch.zeros(1, 16385), torch.ones(16385), 1e-5)


def test_a_broken_row_is_normalised_alone() -> None:
    x = draw(3, 70)
    clean = RmsNorm(workspace(), HALF)(x, torch.ones(70), 1e-5).clone()
    x[1, 5] = torch.nan
    found = RmsNorm(workspace(), HALF)(x, torch.ones(70), 1e-5)
    assert found[1].isnan().all() and torch.equal(found[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_gated_activations(dtype: torch.dtype, kind: str) -> None:
    x = (draw(3, 2 * 1031 + 1) * 5).to(dtype)[:, :-1]
    found = ActMul(workspace(), HALF)(x, kind)  # type: ignore[arg-type]
    assert found.dtype == dtype
    expected = activation.act_mul(workspace(), x.float(), kind)  # type: ignore[arg-type]
    torch.testing.assert_close(found.float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
