"""`Ops.linear` on GPUs: dense weights, types, and what is prepared when."""

from __future__ import annotations

import pytest
import torch

from inference_stack.ops.api import Linear
from inference_stack.ops.triton.linear import DenseWeight
from tests.ops.triton.projections import error, make_linear, quantised, random


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("rows", "outputs", "depth"), [(1, 37, 65), (17, 64, 96), (131, 5, 33)])
def test_a_dense_product_is_right(rows: int, outputs: int, depth: int, biased: bool, deterministic: bool) -> None:
    bias = random(outputs, seed=2, dtype=torch.float32) if biased else None
    source, x = random(outputs, depth, seed=1, dtype=torch.float32), random(rows, depth)
    found = make_linear(deterministic=deterministic)(x, Linear(weight=source, bias_N=bias))
    assert found.dtype == torch.float16 and found.is_contiguous()
    assert error(found, x, source, bias) < 3e-3


@pytest.mark.parametrize("deterministic", [False, True])
def test_columns_apart_are_read_where_they_are(deterministic: bool) -> None:
    source, x = random(20, 31, dtype=torch.float32), random(31, 9, seed=1, dtype=torch.float32).t()
    found = make_linear(torch.float32, deterministic)(x, Linear(weight=source))
    assert error(found, x, source) < 1e-5


@pytest.mark.parametrize("loaded", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_kept_in_the_activations_type(loaded: torch.dtype) -> None:
    weight = Linear(weight=random(8, 16, dtype=loaded), looked_up=True)
    make_linear(torch.bfloat16).prepare(weight)
    assert isinstance(weight.weight, DenseWeight)
    assert weight.weight.weight_NK.dtype == torch.bfloat16
    assert weight.weight.nbytes == 8 * 16 * 2
    assert weight.weight.rows(torch.tensor([5])).dtype == torch.float32


@pytest.mark.parametrize("form", ["dense", "packed"])
def test_the_result_has_the_type_of_x(form: str) -> None:
    source = random(8, 32) if form == "dense" else quantised(4, 32, 32, 8)
    x = random(3, 32, dtype=torch.float32)
    assert make_linear(torch.float16)(x, Linear(weight=source)).dtype == torch.float32


@pytest.mark.parametrize("form", ["dense", "packed", "float8"])
def test_no_rows_give_no_rows(form: str) -> None:
    source = quantised(4, 32, 32, 8) if form == "packed" else random(8, 32)
    linear = make_linear(weights="float8" if form == "float8" else "native")
    assert linear(random(0, 32), Linear(weight=source)).shape == (0, 8)


def test_preparing_twice_changes_nothing() -> None:
    linear, weight = make_linear(), Linear(weight=random(8, 16))
    linear.prepare(weight)
    prepared = weight.weight
    linear.prepare(weight)
    assert weight.weight is prepared


def test_tables_stay_as_they_are_where_projections_are_rounded() -> None:
    table = Linear(weight=random(8, 16), looked_up=True)
    make_linear(weights="float8").prepare(table)
    assert isinstance(table.weight, DenseWeight)


def test_a_weight_prepared_for_something_else_is_refused() -> None:
    class Other:
        shape = (8, 16)
        nbytes = 0

        def rows(self, index_T: torch.Tensor) -> torch.Tensor:
            return index_T

    with pytest.raises(TypeError, match="another implementation"):
        make_linear()(random(1, 16), Linear(weight=Other()))
