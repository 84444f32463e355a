"""The product of one order: right at odd sizes, and a row's bits whatever its company."""

from __future__ import annotations

import pytest
import torch

from inference_stack.ops.api import Linear
from inference_stack.ops.triton import gemm
from inference_stack.ops.triton.cards import Room
from tests.ops.triton.projections import assert_rows_alone, error, make_linear, random


@pytest.mark.parametrize("tile", gemm.TILES, ids=lambda tile: f"{tile.rows}x{tile.outputs}")
@pytest.mark.parametrize(("rows", "outputs", "depth"), [(1, 1, 1), (3, 37, 65), (130, 129, 64), (65, 300, 19)])
def test_every_tile_is_right_at_odd_sizes(tile: gemm.Tile, rows: int, outputs: int, depth: int) -> None:
    x, weight, bias = random(rows, depth), random(outputs, depth, seed=1), random(outputs, seed=2)
    y = torch.full((rows, outputs), torch.nan, dtype=torch.float16)
    gemm.gemm(x, weight, bias, y, tile)
    assert error(y, x, weight, bias) < 1e-3


def test_what_lies_beside_x_is_not_read() -> None:
    wide = torch.full((5, 90), torch.nan, dtype=torch.float16)
    wide[:3, :70] = random(3, 70)
    x, weight = wide[:3, :70], random(20, 70, seed=1)
    y = torch.full((3, 20), torch.nan, dtype=torch.float16)
    gemm.gemm(x, weight, None, y, gemm.BASE)
    assert error(y, x, weight) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_row_is_the_same_alone_and_in_any_batch(dtype: torch.dtype) -> None:
    linear, weight = make_linear(dtype, deterministic=True), Linear(weight=random(70, 130, dtype=dtype))
    x = random(130, 130, seed=1, dtype=dtype)
    assert_rows_alone(linear, weight, x, (1, 2, 16, 17, 64, 65, 129))


def test_a_broken_row_fails_alone() -> None:
    linear, weight = make_linear(deterministic=True), Linear(weight=random(33, 40))
    x = random(5, 40, seed=1)
    whole = linear(x, weight).clone()
    x[1, 3], x[3, 39] = torch.nan, torch.inf
    found = linear(x, weight)
    assert not found[[1, 3]].isfinite().any()
    assert torch.equal(found[[0, 2, 4]], whole[[0, 2, 4]])


def test_few_rows_take_the_small_tile_and_many_one_that_keeps_the_device_busy() -> None:
    assert gemm.tile_for(gemm.TILES, 64, 128256) is gemm.SHORT
    assert gemm.tile_for(gemm.TILES, 128, 4096) is gemm.SHORT
    assert gemm.tile_for(gemm.TILES, 256, 4096) is gemm.NARROW
    assert gemm.tile_for(gemm.TILES, 65, 64) is gemm.SHORT
    assert gemm.tile_for(gemm.TILES, 128, 28672) is gemm.BASE
    assert gemm.tile_for(gemm.TILES, 2048, 28672) is gemm.WIDE
    assert gemm.tile_for((gemm.BASE,), 1, 64) is gemm.BASE


def test_tiles_that_disagree_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "interpreting", lambda: False)
    results = {1: torch.ones(2), 2: torch.zeros(2), 3: torch.zeros(2)}
    assert gemm.agreeing((1, 2, 3), 3, results.__getitem__) == (2, 3)


@pytest.mark.parametrize(("capability", "widest"), [((8, 9), gemm.BASE), ((9, 0), gemm.WIDE)])
def test_the_widest_tile_is_for_hopper(
    capability: tuple[int, int], widest: gemm.Tile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(gemm, "room", lambda _: Room(132, roomy=capability == (9, 0)))
    tiles = gemm.tiles_of(torch.device("cuda"))
    assert tiles[-1] == widest
    assert (tiles[0] == gemm.SHORT) == (capability == (9, 0))
    assert gemm.tile_for(tiles, 1, 4096) is tiles[0]
