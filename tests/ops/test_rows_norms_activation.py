"""embed, select, norms and activations against float64, and their independence of neighbours."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from inference_stack.ops.api import Linear
from inference_stack.ops.facade import BoundOps


def test_embed_scales_rows_of_the_table(ops: BoundOps) -> None:
    table = torch.randn(11, 7, dtype=torch.bfloat16)
    tokens = torch.tensor([3, 3, 10, 0])
    assert torch.equal(ops.embed(tokens, Linear(weight=table), 2.5), table.float()[tokens] * 2.5)


def test_select_copies_rows_and_counts_samples(ops: BoundOps) -> None:
    x = torch.randn(6, 5)
    y = ops.select(x, torch.tensor([5, 0, 5]))
    assert torch.equal(y, x[[5, 0, 5]])
    assert ops.workspace.rows_of(y) == "samples"


@pytest.mark.parametrize("width", [1, 37, 576, 40000])
def test_rmsnorm_matches_float64(ops: BoundOps, width: int) -> None:
    x, weight = torch.randn(5, width) * 3, torch.randn(width)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(ops.rmsnorm(x, weight, 1e-5).double(), expected, rtol=1e-5, atol=1e-6)


def test_add_rmsnorm_is_the_sum_and_its_norm(ops: BoundOps) -> None:
    x, residual, weight = torch.randn(4, 33), torch.randn(4, 33), torch.randn(33)
    normed, total = ops.add_rmsnorm(x, residual, weight, 1e-6)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, ops.rmsnorm(total, weight, 1e-6))


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_activation_matches_float64(ops: BoundOps, kind: str) -> None:
    x = torch.randn(6, 2 * 37) * 5
    gate, up = x.double().chunk(2, dim=1)
    act = functional.silu(gate) if kind == "silu" else functional.gelu(gate, approximate="tanh")
    torch.testing.assert_close(ops.act_mul(x, kind).double(), act * up, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]


def test_activation_of_extreme_gates_is_finite(ops: BoundOps) -> None:
    x = torch.tensor([[-1e30, 1e4, -200.0, 1.0, 1.0, 1.0]])
    assert torch.equal(ops.act_mul(x, "silu"), torch.tensor([[0.0, 1e4, 0.0]]))


@settings(max_examples=40, deadline=None)
@given(width=st.sampled_from([1, 37, 577, 5003, 20011]), start=st.integers(0, 8), rows=st.integers(1, 9))
def test_a_row_is_the_same_alone_and_in_any_batch(ops: BoundOps, width: int, start: int, rows: int) -> None:
    x = torch.randn(17, width, generator=torch.Generator().manual_seed(width)) * 3
    part = x[start : start + rows].clone()
    weight = torch.linspace(-2, 2, width)
    assert torch.equal(ops.rmsnorm(part, weight, 1e-5), ops.rmsnorm(x, weight, 1e-5)[start : start + rows])
    for kind in ("silu", "gelu_tanh"):
        whole = ops.act_mul(torch.cat([x, x.flip(1)], 1), kind)[start : start + rows]  # type: ignore[arg-type]
        assert torch.equal(ops.act_mul(torch.cat([part, part.flip(1)], 1), kind), whole)  # type: ignore[arg-type]
