"""Tiled linear: right against float64, and a row's bits do not depend on its company."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_stack.ops.api import Linear
from inference_stack.ops.facade import BoundOps
from inference_stack.ops.reference import linear
from inference_stack.ops.reference.linear import NotInvariant, matching_tiles, tiling
from tests.ops.parts import make_ops

SHAPES = [(576, 960), (1536, 576), (100, 7), (513, 65), (64, 4096), (17, 33), (1, 1)]
DENSE = {shape: torch.randn(shape[1], shape[0]) for shape in SHAPES}
BIAS = {shape: torch.randn(shape[1]) for shape in SHAPES}


@lru_cache
def weight_of(shape: tuple[int, int], ops: BoundOps) -> Linear:
    """The weight of this shape (inputs, outputs), prepared by these ops."""
    weight = Linear(weight=DENSE[shape], bias_N=BIAS[shape])
    ops.prepare(weight)
    return weight


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 8, 45, 300])
def test_linear_matches_float64(ops: BoundOps, shape: tuple[int, int], rows: int) -> None:
    weight = weight_of(shape, ops)
    x = torch.randn(rows, shape[0])
    expected = x.double() @ DENSE[shape].double().t() + BIAS[shape].double()
    torch.testing.assert_close(ops.linear(x, weight).double(), expected, rtol=1e-4, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(shape=st.sampled_from(SHAPES), start=st.integers(0, 250), rows=st.integers(1, 290))
def test_a_row_is_the_same_alone_and_in_any_batch(ops: BoundOps, shape: tuple[int, int], start: int, rows: int) -> None:
    x = torch.randn(300, shape[0], generator=torch.Generator().manual_seed(shape[0]))
    weight = weight_of(shape, ops)
    whole = ops.linear(x, weight)
    part = x[start : start + rows]
    assert torch.equal(ops.linear(part.clone(), weight), whole[start : start + rows])


def test_neighbours_do_not_matter(ops: BoundOps) -> None:
    weight = weight_of((576, 960), ops)
    x, noisy = torch.randn(1, 576), torch.full((7, 576), 1e20)
    noisy[3] = float("nan")
    batch = torch.cat([noisy[:5], x, noisy[5:]])
    assert torch.equal(ops.linear(batch, weight)[5:6], ops.linear(x, weight))


def test_strided_input_gives_the_same_bits(ops: BoundOps) -> None:
    wide = torch.randn(9, 600)
    x = wide[:, 10:586]
    assert torch.equal(
        ops.linear(x, weight_of((576, 960), ops)), ops.linear(x.contiguous(), weight_of((576, 960), ops))
    )


def test_an_unprepared_weight_is_the_same_weight(ops: BoundOps) -> None:
    x = torch.randn(5, 513)
    loaded = Linear(weight=DENSE[513, 65], bias_N=BIAS[513, 65])
    assert torch.equal(ops.linear(x, loaded), ops.linear(x, weight_of((513, 65), ops)))


def test_a_half_precision_weight_is_used_in_fp32(ops: BoundOps) -> None:
    half = torch.randn(33, 17).to(torch.bfloat16)
    x = torch.randn(3, 17)
    assert torch.equal(ops.linear(x, Linear(weight=half)), ops.linear(x, Linear(weight=half.float())))


def test_a_weight_is_kept_once_and_a_table_can_still_be_looked_up() -> None:
    ops, dense = make_ops(), torch.randn(32, 16)
    projection, table = Linear(weight=dense), Linear(weight=dense, looked_up=True)
    ops.prepare(projection)
    ops.prepare(table)
    assert projection.weight.nbytes == dense.nbytes
    assert torch.equal(ops.embed(torch.tensor([3, 31]), table), dense[[3, 31]])


def test_the_output_counts_what_the_input_counts(ops: BoundOps) -> None:
    x = ops.select(torch.randn(4, 17), torch.tensor([1, 2]))
    assert ops.workspace.rows_of(ops.linear(x, weight_of((17, 33), ops))) == "samples"


@given(st.integers(0, 3000))
def test_tiles_cover_the_rows_with_little_waste(rows: int) -> None:
    tiles = tiling(rows, linear.TILES)
    assert set(tiles) <= set(linear.TILES)
    assert rows <= sum(tiles) <= max(rows + 31, rows * 1.25)


def test_a_product_that_sees_neighbours_is_refused() -> None:
    with pytest.raises(NotInvariant):
        matching_tiles(lambda x: x + x.sum(0), 4, 4, torch.device("cpu"))


def test_a_tile_that_rounds_differently_is_not_used() -> None:
    def product(x: torch.Tensor) -> torch.Tensor:
        return x * (1.0 if x.shape[0] <= 16 else 1.0000001)

    assert matching_tiles(product, 4, 4, torch.device("cpu")) == (8, 16)
