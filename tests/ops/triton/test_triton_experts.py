"""Experts as kernels, interpreted: routing and sorting exactly, every path against float64, and a token's bits in any company."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inference_stack.models.loader import load_model
from inference_stack.ops.api import Experts, Linear, Mxfp4, Quantised
from inference_stack.ops.reference import experts as reference
from inference_stack.ops.reference import mxfp4
from inference_stack.ops.registry import OPS, Registry, build_ops, reference_implementations
from inference_stack.ops.triton import experts_pairs, experts_routing, experts_tiles
from inference_stack.ops.triton.experts import TritonExperts, few
from inference_stack.ops.triton.experts_routing import Tiles, by_expert, route, tiles_at_most
from inference_stack.ops.triton.implementations import triton_implementations
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace
from tests.models import tiny
from tests.models.paged import PagedModel
from tests.ops.test_experts import draw, oracle

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, of infinities that are meant

COUNT, WIDTH, INNER = 6, 64, 32


def workspace() -> Workspace:
    return Workspace(max_tokens=64, max_samples=8)


def shaped(
    width: int = WIDTH, inner: int = INNER, top_k: int = 3, normalised: bool = True, activation: str = "silu"
) -> Experts:
    return Experts(
        gate_up=draw(COUNT, 2 * inner, width, seed=1, spread=0.2),
        down=draw(COUNT, width, inner, seed=2, spread=0.2),
        top_k=top_k,
        normalised=normalised,
        activation=activation,  # type: ignore[arg-type]
    )


def biased(experts: Experts) -> Experts:
    rows, width = experts.gate_up.shape[1], experts.down.shape[1]  # type: ignore[union-attr]
    experts.gate_up_bias_XN, experts.down_bias_XD = draw(COUNT, rows, seed=3, spread=4.0), draw(COUNT, width, seed=4)
    return experts


def fp4(rows: int, width: int, seed: int) -> Mxfp4:
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (COUNT, rows, width // 2), generator=generator, dtype=torch.uint8)
    scales = torch.randint(122, 126, (COUNT, rows, width // 32), generator=generator, dtype=torch.uint8)
    return Mxfp4(blocks=blocks, scales=scales)


def fp4_experts(width: int = WIDTH, inner: int = INNER) -> Experts:
    return Experts(
        gate_up=fp4(2 * inner, width, 7),
        down=fp4(width, inner, 8),
        top_k=2,
        normalised=True,
        activation="clamped_swiglu",
    )


def by_pairs(x_TD: Tensor, logits_TX: Tensor, experts: Experts) -> Tensor:
    place = workspace()
    y_TD = torch.full_like(x_TD, torch.nan)
    experts_pairs.run(place, x_TD, experts, *route(place, logits_TX, experts.top_k, experts.normalised), y_TD)
    return y_TD


def by_tiles(shape: experts_tiles.Shape) -> Callable[[Tensor, Tensor, Experts], Tensor]:
    def run(x_TD: Tensor, logits_TX: Tensor, experts: Experts) -> Tensor:
        place = workspace()
        y_TD = torch.full_like(x_TD, torch.nan)
        experts_TK, weights_TK = route(place, logits_TX, experts.top_k, experts.normalised)
        tiles = by_expert(experts_TK, logits_TX.shape[1], shape.rows)
        experts_tiles.run(place, x_TD, experts, weights_TK, tiles, shape, y_TD)
        return y_TD

    return run


SMALL = experts_tiles.Shape(16, 64, 32, 32, 32, 4, 2, 2)
PATHS = {"pairs": by_pairs, "tiles": by_tiles(SMALL)}
SHIPPED = {"pairs": by_pairs, **{f"tiles of {shape.rows}": by_tiles(shape) for shape in experts_tiles.SHAPES}}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that do more rows at once, of which there are fewer, and take several rounds for a row."""
    for name, value in (("UP_ROWS", 32), ("DOWN_ROWS", 32), ("DEPTH", 32), ("GROUPS", 1)):
        monkeypatch.setattr(experts_pairs, name, value)


small_programs = pytest.mark.usefixtures("small")


@pytest.mark.parametrize("count", [5, 33, 200, 256])
@pytest.mark.parametrize("normalised", [True, False])
def test_routing_equals_the_reference(count: int, normalised: bool) -> None:
    logits_TX = draw(7, count, seed=count)
    logits_TX[2, 1:4] = 9.0  # a tie for the first place
    found, share = route(workspace(), logits_TX, 4, normalised)
    index_TK, weight_TK = reference.route(logits_TX, 4, normalised)
    assert torch.equal(found.long(), index_TK)
    torch.testing.assert_close(share, weight_TK, rtol=1e-5, atol=1e-7)


def test_logits_that_are_not_finite_choose_experts_that_exist() -> None:
    logits_TX = draw(4, 5, seed=1)
    logits_TX[0, 3], logits_TX[1], logits_TX[2, 1], logits_TX[2, 0] = torch.nan, torch.nan, torch.inf, -torch.inf
    found, share = route(workspace(), logits_TX, 5, True)
    assert all(sorted(row) == list(range(5)) for row in found.tolist())
    assert share[:3].isnan().all() and share[3].isfinite().all()


def test_strided_logits_of_half_precision() -> None:
    logits_TX = draw(3, 40, seed=2).to(torch.bfloat16)[:, :10]
    found, _ = route(workspace(), logits_TX, 2, True)
    assert torch.equal(found.long(), reference.route(logits_TX, 2, True)[0])


def cut(tiles: Tiles) -> list[tuple[int, list[int]]]:
    """Every used tile's expert and pairs."""
    spans = zip(tiles.expert.tolist(), tiles.first.tolist(), tiles.rows.tolist(), strict=True)
    return [(expert, tiles.order[first : first + rows].tolist()) for expert, first, rows in spans if rows]


@pytest.mark.parametrize(("tokens", "top_k", "count"), [(1, 1, 1), (3, 2, 40), (70, 3, 7), (150, 2, 130), (1100, 1, 9)])
def test_pairs_are_sorted_and_cut_into_tiles(
    tokens: int, top_k: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts_routing, "CHUNKS", 4 if tokens < 1000 else 128)
    chosen = torch.rand(tokens, count, generator=torch.Generator().manual_seed(3)).argsort(1)[:, :top_k]
    tiles = by_expert(chosen.to(torch.int32).contiguous(), count, 16)
    flat = chosen.flatten()
    expected = []
    for expert in range(count):
        pairs = (flat == expert).nonzero().flatten().tolist()
        expected += [(expert, pairs[start : start + 16]) for start in range(0, len(pairs), 16)]
    assert cut(tiles) == expected


def test_there_is_room_for_the_most_tiles() -> None:
    uneven = torch.cat(
        (torch.arange(5), torch.zeros(27, dtype=torch.int64))
    )  # 28 pairs of one expert, one of each other
    tiles = by_expert(uneven.to(torch.int32)[:, None], 5, 16)
    assert len(cut(tiles)) == 6 <= tiles.most == tiles_at_most(32, 5, 16)


@pytest.mark.parametrize("path", SHIPPED)
def test_dense_experts_in_every_shipped_shape(path: str) -> None:
    experts = shaped(width=288, normalised=False)
    x_TD, logits_TX = draw(2, 288, seed=5), draw(2, COUNT, seed=6)
    y_TD = SHIPPED[path](x_TD, logits_TX, experts)
    torch.testing.assert_close(y_TD, oracle(x_TD, logits_TX, experts).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", SHIPPED)
def test_mxfp4_experts_in_every_shipped_shape(path: str) -> None:
    experts = biased(fp4_experts(width=544))
    x_TD, logits_TX = draw(1, 544, seed=5, spread=0.1), draw(1, COUNT, seed=6)
    y_TD, expected = SHIPPED[path](x_TD, logits_TX, experts), oracle(x_TD, logits_TX, experts)
    assert (y_TD - expected).norm() < 1e-5 * expected.norm()


@small_programs
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("normalised", [True, False])
def test_dense_experts(path: str, normalised: bool) -> None:
    experts = shaped(normalised=normalised)
    tokens = 5 if path == "pairs" else 40
    x_TD, logits_TX = draw(tokens, WIDTH, seed=5), draw(tokens, COUNT, seed=6)
    y_TD = PATHS[path](x_TD, logits_TX, experts)
    torch.testing.assert_close(y_TD, oracle(x_TD, logits_TX, experts).float(), rtol=1e-4, atol=1e-4)


@small_programs
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("activation", ["gelu_tanh", "clamped_swiglu"])
def test_odd_sizes_biases_and_activations(path: str, activation: str) -> None:
    experts = biased(shaped(width=40, inner=43, activation=activation))
    wide, logits_TX = draw(5, 60, seed=5, spread=4.0), draw(5, COUNT, seed=6)
    x_TD = wide[:, :40]
    y_TD = PATHS[path](x_TD, logits_TX, experts)
    torch.testing.assert_close(y_TD, oracle(x_TD, logits_TX, experts).float(), rtol=1e-4, atol=1e-3)


@small_programs
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_mxfp4_experts(path: str, dtype: torch.dtype) -> None:
    experts = biased(fp4_experts(inner=96))
    x_TD, logits_TX = draw(4, WIDTH, seed=5, spread=0.1).to(dtype), draw(4, COUNT, seed=6)
    y_TD, expected = PATHS[path](x_TD, logits_TX, experts), oracle(x_TD, logits_TX, experts)
    tolerance = 2e-3 if dtype == torch.float16 else 1e-5
    assert y_TD.dtype == dtype and (y_TD - expected).norm() < tolerance * expected.norm()


@small_programs
@pytest.mark.parametrize("path", PATHS)
def test_every_code_and_scale_of_mxfp4(path: str) -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(1, 2, 1)
    scales = torch.tensor([1, 60, 118, 126, 127, 128, 135, 140] * 4, dtype=torch.uint8).view(1, 32, 1)
    experts = Experts(
        gate_up=Mxfp4(blocks=blocks, scales=scales),
        down=torch.eye(16)[None].contiguous(),
        top_k=1,
        normalised=True,
        gate_up_bias_XN=torch.cat((torch.full((16,), 50.0), torch.zeros(16)))[None].contiguous(),
    )  # the gate lets everything through: y is 50 + gate times up, of one column at a time
    experts.gate_up.blocks[:, :16] = 0  # type: ignore[union-attr]
    table = mxfp4.dequantise(experts.gate_up.blocks[0, 16:], scales[0, 16:])  # type: ignore[union-attr]
    y_TD = PATHS[path](torch.eye(32)[:, :32].contiguous(), torch.zeros(32, 1), experts)[:, :16]
    torch.testing.assert_close(y_TD, table.T * 50.0, rtol=1e-6, atol=0)


@small_programs
def test_half_precision_is_rounded_once_between_projections() -> None:
    experts = shaped()
    experts.gate_up, experts.down = experts.gate_up.half(), experts.down.half()  # type: ignore[union-attr]
    x_TD, logits_TX = draw(3, WIDTH, seed=5).half(), draw(3, COUNT, seed=6)
    expected = oracle(x_TD, logits_TX, experts)
    for path in PATHS.values():
        assert (path(x_TD, logits_TX, experts) - expected).norm() < 2e-3 * expected.norm()


@small_programs
@pytest.mark.parametrize("path", PATHS)
def test_a_token_that_is_not_finite_touches_no_other(path: str) -> None:
    experts = shaped()
    x_TD, logits_TX = draw(5, WIDTH, seed=5), draw(5, COUNT, seed=6)
    clean = PATHS[path](x_TD, logits_TX, experts)
    x_TD[1], logits_TX[3, 2] = torch.nan, torch.nan
    y_TD = PATHS[path](x_TD, logits_TX, experts)
    assert y_TD[1].isnan().all() and y_TD[3].isnan().all()
    assert torch.equal(y_TD[[0, 2, 4]], clean[[0, 2, 4]])


def test_in_deterministic_mode_a_token_has_the_same_bits_in_any_company() -> None:
    ops = TritonExperts(workspace(), TritonSettings(dtype=torch.float32, deterministic=True))
    experts = shaped(normalised=False)
    x_TD, logits_TX = draw(40, WIDTH, seed=5), draw(40, COUNT, seed=6)
    together = ops(x_TD, logits_TX, experts).clone()
    for first, last in ((0, 1), (3, 11)):
        assert torch.equal(ops(x_TD[first:last], logits_TX[first:last], experts), together[first:last])


def test_long_steps_are_computed_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = TritonExperts(workspace(), TritonSettings(dtype=torch.float32, deterministic=True))
    x_TD, logits_TX = draw(21, WIDTH, seed=5), draw(21, COUNT, seed=6)
    whole = ops(x_TD, logits_TX, shaped()).clone()
    monkeypatch.setattr("inference_stack.ops.triton.experts.SLAB", 8)
    assert torch.equal(ops(x_TD, logits_TX, shaped()), whole)


def test_few_tokens_go_by_pairs_and_many_by_tiles() -> None:
    assert few(1 * 8, 128, 8) and few(8 * 8, 128, 8) and not few(16 * 8, 128, 8)  # Qwen3-30B-A3B
    assert few(2 * 2, 8, 2) and not few(4 * 2, 8, 2)  # Mixtral
    shapes = [experts_tiles.shape_for(tokens * 8, 128) for tokens in (32, 1024, 8192)]
    assert shapes == [experts_tiles.SMALL, experts_tiles.MIDDLE, experts_tiles.LARGE]


@small_programs
@pytest.mark.parametrize("tokens", [2, 30])
def test_group_quantised_experts_become_dense(tokens: int) -> None:
    def quantised(rows: int, width: int, seed: int) -> Quantised:
        codes = torch.randint(-100, 100, (rows, width), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
        return Quantised(bits=8, codes=codes, scale_NG=torch.full((rows, width // 32), 0.002), zero_NG=None, group=32)

    experts = Experts(
        gate_up=tuple(Linear(weight=quantised(2 * INNER, WIDTH, seed)) for seed in range(COUNT)),
        down=tuple(Linear(weight=quantised(WIDTH, INNER, 9), bias_N=draw(WIDTH, seed=e)) for e in range(COUNT)),
        top_k=2,
        normalised=True,
    )
    x_TD, logits_TX = draw(tokens, WIDTH, seed=5), draw(tokens, COUNT, seed=6)
    y_TD = TritonExperts(workspace(), TritonSettings(dtype=torch.float32))(x_TD, logits_TX, experts)
    assert isinstance(experts.gate_up, Tensor) and experts.gate_up_bias_XN is None
    torch.testing.assert_close(y_TD, oracle(x_TD, logits_TX, experts).float(), rtol=1e-4, atol=1e-4)


def test_no_token_is_no_work() -> None:
    ops = TritonExperts(workspace(), TritonSettings(dtype=torch.float32))
    assert ops(torch.empty(0, WIDTH), torch.empty(0, COUNT), shaped()).shape == (0, WIDTH)


@pytest.mark.parametrize("family", ["mixtral", pytest.param("gpt-oss", marks=pytest.mark.slow)])
def test_a_model_over_these_experts_equals_transformers(family: str, tmp_path: Path) -> None:
    settings = TritonSettings(dtype=torch.float32, deterministic=True)
    registry = Registry((*reference_implementations(), *triton_implementations(settings)))
    prefer = dict.fromkeys(OPS, "reference") | {"experts": "triton"}
    ops = build_ops(workspace(), registry=registry, prefer=prefer)
    made, prompt = tiny.make(family), tiny.tokens(6, seed=1)
    loaded = load_model(tiny.save(made, tmp_path), prepare=ops.prepare)
    logits_TV = PagedModel(loaded.model, ops, rows=1, max_tokens=16).step([prompt])
    torch.testing.assert_close(logits_TV, tiny.oracle_logits(made, prompt), rtol=1e-4, atol=1e-4)
