"""Products by 4-bit and 8-bit weights against the dequantised weight in float64, in every form and at all numbers of rows."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from inference_stack.ops.api import Linear, Quantised
from inference_stack.ops.reference.quantised import dequantise
from inference_stack.ops.triton import w4a16
from inference_stack.ops.triton.w4a16 import PackedWeight
from tests.ops.triton.projections import assert_rows_alone, error, make_linear, quantised, random

FORMS = [
    # bits, group, inputs, outputs, fp16 scales, zeros, shuffled columns
    (4, 16, 48, 20, True, True, False),
    (4, 32, 96, 37, True, False, True),
    (4, 48, 144, 130, False, True, False),
    (4, 64, 192, 33, True, True, False),
    (4, 128, 384, 70, True, True, True),
    (4, 128, 128, 1, False, False, False),
    (4, 144, 144, 24, False, True, False),
    (8, 16, 80, 17, True, True, False),
    (8, 32, 96, 37, False, False, True),
    (8, 128, 128, 16, True, True, False),
    (8, 256, 256, 129, True, False, False),
]


@lru_cache
def weight_of(form: int) -> Quantised:
    bits, group, inputs, outputs, half, zeros, shuffled = FORMS[form]
    return quantised(bits, group, inputs, outputs, half=half, zeros=zeros, shuffled=shuffled)


@pytest.mark.parametrize("form", range(len(FORMS)))
@pytest.mark.parametrize("rows", [1, 19, 70, 130])
def test_the_result_is_the_dequantised_weights(form: int, rows: int) -> None:
    bias = random(FORMS[form][3], seed=2, dtype=torch.float32) if form % 2 else None
    linear, weight = make_linear(), Linear(weight=weight_of(form), bias_N=bias)
    linear.prepare(weight)
    x = random(rows, FORMS[form][2], seed=rows)
    for _ in range(2):  # what programs leave behind must be as they found it
        found = linear(x, weight)
        assert found.dtype == x.dtype
        assert error(found, x, dequantise(weight_of(form)), bias) < 2e-3


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_rows_of_a_table_are_exact(form: int) -> None:
    table = Linear(weight=weight_of(form), looked_up=True)
    make_linear().prepare(table)
    index = torch.tensor([0, FORMS[form][3] - 1, 0])
    assert isinstance(table.weight, PackedWeight)
    assert torch.equal(table.weight.rows(index), dequantise(weight_of(form))[index])


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_a_widened_weight_is_the_rounded_one(form: int) -> None:
    linear, weight = make_linear(), Linear(weight=weight_of(form))
    linear.prepare(weight)
    assert isinstance(weight.weight, PackedWeight)
    outputs = FORMS[form][3]
    first = min(7, outputs - 1)
    wanted = dequantise(Quantised(**{**fields(weight_of(form)), "order_K": None}))[first:].half()
    found = weight.weight.dense(slice(first, outputs))
    if weight.weight.half:
        assert torch.equal(found, wanted)
    else:  # a scale's last bits are lost
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-5)


def fields(weight: Quantised) -> dict[str, object]:
    return {name: getattr(weight, name) for name in Quantised.__slots__}


@pytest.mark.parametrize("tile", w4a16.TILES, ids=lambda tile: f"{tile.rows}x{tile.outputs}")
@pytest.mark.parametrize("fixed", [False, True])
def test_every_tile_is_right_in_one_span_and_in_several(
    tile: w4a16.Tile, fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(w4a16, "FEWEST_BLOCKS", 1)
    source = quantised(4, 128, 384, 130)
    made = w4a16.packed(source, None, torch.device("cpu"), torch.float32, fixed)
    assert made.splits(tile) > 1
    x = random(tile.rows + 3, 384, dtype=torch.float32)
    for rows in (tile.rows, tile.rows + 3):
        y = torch.full((rows, 130), torch.nan)
        made._multiply_fused(x[:rows], y, tile)
        assert error(y, x[:rows], dequantise(source)) < 1e-5
    assert not made.arrived.any()


@pytest.mark.parametrize("form", [1, 4, 9])
def test_a_row_is_the_same_alone_and_in_any_batch(form: int) -> None:
    linear, weight = make_linear(deterministic=True), Linear(weight=weight_of(form))
    x = random(70, FORMS[form][2], seed=1)
    assert_rows_alone(linear, weight, x, (1, 17, 64, 65))
    assert error(linear(x, weight), x, dequantise(weight_of(form))) < 2e-3


def test_spans_in_programs_of_their_own_give_the_bits_of_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(w4a16, "FEWEST_BLOCKS", 1)
    made = w4a16.packed(quantised(4, 64, 384, 40), None, torch.device("cpu"), torch.float16, True)
    x = random(65, 384)
    together, apart = torch.empty(65, 40, dtype=torch.float16), torch.empty(9, 40, dtype=torch.float16)
    made._multiply_fused(x, together, w4a16.BASE)
    made._multiply_fused(x[20:29], apart, w4a16.BASE)
    assert torch.equal(apart, together[20:29])


def test_how_k_is_split_depends_on_the_weight_alone_where_bits_must_not() -> None:
    made = w4a16.packed(quantised(4, 128, 2048, 256), None, torch.device("cpu"), torch.float16, True)
    assert len({made.splits(tile) for tile in w4a16.TILES}) == 1


def test_a_broken_row_fails_alone() -> None:
    linear, weight = make_linear(), Linear(weight=weight_of(3))
    x = random(4, 192)
    whole = linear(x, weight).clone()
    x[0, 5], x[2, 190] = torch.nan, torch.inf
    found = linear(x, weight)
    assert not found[[0, 2]].isfinite().any()
    assert torch.equal(found[[1, 3]], whole[[1, 3]])


def test_columns_beside_x_are_not_read() -> None:
    wide = torch.full((4, 200), torch.nan, dtype=torch.float16)
    wide[:, :144] = random(4, 144)
    linear, weight = make_linear(), Linear(weight=weight_of(6))
    assert error(linear(wide[:, :144], weight), wide[:, :144], dequantise(weight_of(6))) < 2e-3


def test_wide_weights_are_widened_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(w4a16, "WIDENED_BYTES", 1)
    bias = random(300, dtype=torch.float32)
    source = quantised(8, 32, 64, 300)
    linear, weight, x = make_linear(), Linear(weight=source, bias_N=bias), random(140, 64)
    assert error(linear(x, weight), x, dequantise(source), bias) < 2e-3
