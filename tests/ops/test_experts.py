"""Experts: routing and weighing, every form of weights against a plain float64 loop, and rows that depend on themselves alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from inference_stack.ops.api import Experts, Linear, Mxfp4
from inference_stack.ops.facade import EXPERT_OPS, STEP_OPS, BoundOps
from inference_stack.ops.reference import mxfp4
from inference_stack.ops.reference.experts import route
from tests.ops.parts import make_ops, native_sets

COUNT, WIDTH, INNER = 6, 64, 96
ORACLE_ACTIVATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": lambda gate, up: torch.nn.functional.silu(gate) * up,
    "gelu_tanh": lambda gate, up: torch.nn.functional.gelu(gate, approximate="tanh") * up,
    "clamped_swiglu": lambda gate, up: (
        gate.clamp(max=7.0) * torch.sigmoid(1.702 * gate.clamp(max=7.0)) * (up.clamp(-7.0, 7.0) + 1)
    ),
}


def draw(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * spread


def random_mxfp4(rows: int, width: int, seed: int) -> Mxfp4:
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (COUNT, rows, width // 2), generator=generator, dtype=torch.uint8)
    scales = torch.randint(120, 127, (COUNT, rows, width // 32), generator=generator, dtype=torch.uint8)
    return Mxfp4(blocks=blocks, scales=scales)


def dense(dtype: torch.dtype = torch.float32, activation: str = "silu", normalised: bool = True) -> Experts:
    return Experts(
        gate_up=draw(COUNT, 2 * INNER, WIDTH, seed=1, spread=0.2).to(dtype),
        down=draw(COUNT, WIDTH, INNER, seed=2, spread=0.2).to(dtype),
        top_k=3,
        normalised=normalised,
        activation=activation,  # type: ignore[arg-type]
    )


def biased(experts: Experts) -> Experts:
    experts.gate_up_bias_XN = draw(COUNT, 2 * INNER, seed=3, spread=4.0)
    experts.down_bias_XD = draw(COUNT, WIDTH, seed=4)
    return experts


def oracle(x_TD: Tensor, logits_TX: Tensor, experts: Experts) -> Tensor:
    """Token by token, expert by expert, in float64."""
    gate_up, down = (
        (mxfp4.dequantise(side.blocks, side.scales) if isinstance(side, Mxfp4) else side).double()  # type: ignore[union-attr]
        for side in (experts.gate_up, experts.down)
    )
    y_TD = torch.zeros(x_TD.shape, dtype=torch.float64)
    for token, (x_D, logits_X) in enumerate(zip(x_TD.double(), logits_TX.double(), strict=True)):
        chosen = logits_X.argsort(descending=True)[: experts.top_k]
        share = logits_X[chosen].softmax(0) if experts.normalised else logits_X.softmax(0)[chosen]
        for expert, weight in zip(chosen.tolist(), share, strict=True):
            inner = gate_up[expert] @ x_D
            inner += 0 if experts.gate_up_bias_XN is None else experts.gate_up_bias_XN[expert]
            out = down[expert] @ ORACLE_ACTIVATIONS[experts.activation](*inner.chunk(2))
            y_TD[token] += weight * (out + (0 if experts.down_bias_XD is None else experts.down_bias_XD[expert]))
    return y_TD


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normalised", [True, False])
def test_dense_experts_equal_a_plain_loop(ops: BoundOps, dtype: torch.dtype, normalised: bool) -> None:
    x_TD, logits_TX = draw(17, WIDTH, seed=5), draw(17, COUNT, seed=6)
    expected = oracle(x_TD, logits_TX, dense(dtype, normalised=normalised))
    y_TD = ops.experts(x_TD, logits_TX, dense(dtype, normalised=normalised))
    torch.testing.assert_close(y_TD, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["gelu_tanh", "clamped_swiglu"])
def test_activations_and_biases(ops: BoundOps, activation: str) -> None:
    x_TD, logits_TX = draw(9, WIDTH, seed=5, spread=4.0), draw(9, COUNT, seed=6)
    expected = oracle(x_TD, logits_TX, biased(dense(activation=activation)))
    y_TD = ops.experts(x_TD, logits_TX, biased(dense(activation=activation)))
    torch.testing.assert_close(y_TD, expected.float(), rtol=1e-4, atol=1e-3)


def test_mxfp4_experts_are_exact_but_for_rounded_activations(ops: BoundOps) -> None:
    def made() -> Experts:
        gate_up, down = random_mxfp4(2 * INNER, WIDTH, 7), random_mxfp4(WIDTH, INNER, 8)
        return Experts(gate_up=gate_up, down=down, top_k=2, normalised=True)

    x_TD, logits_TX = draw(9, WIDTH, seed=5, spread=0.3), draw(9, COUNT, seed=6)
    expected = oracle(x_TD, logits_TX, made())
    y_TD = ops.experts(x_TD, logits_TX, made())
    assert (y_TD - expected).norm() < 2e-2 * expected.norm()


def test_rows_depend_on_themselves_alone(ops: BoundOps) -> None:
    experts = biased(dense(activation="clamped_swiglu", normalised=False))
    x_TD, logits_TX = draw(70, WIDTH, seed=5), draw(70, COUNT, seed=6)
    together = ops.experts(x_TD, logits_TX, experts).clone()
    for first, last in ((0, 1), (3, 10), (12, 70)):
        alone = ops.experts(x_TD[first:last].contiguous(), logits_TX[first:last].contiguous(), experts)
        assert torch.equal(alone, together[first:last])


def test_a_row_that_is_not_finite_touches_no_other(ops: BoundOps) -> None:
    x_TD, logits_TX = draw(5, WIDTH, seed=5), draw(5, COUNT, seed=6)
    clean = ops.experts(x_TD, logits_TX, dense()).clone()
    x_TD[1], logits_TX[1, 2], logits_TX[3] = torch.nan, torch.nan, torch.nan
    y_TD = ops.experts(x_TD, logits_TX, dense())
    assert y_TD[1].isnan().all() and y_TD[3].isnan().all()
    assert torch.equal(y_TD[[0, 2, 4]], clean[[0, 2, 4]])


def test_no_token_is_no_work(ops: BoundOps) -> None:
    assert ops.experts(torch.empty(0, WIDTH), torch.empty(0, COUNT), dense()).shape == (0, WIDTH)


def test_ties_go_to_the_lower_expert() -> None:
    index_TK, weight_TK = route(torch.tensor([[1.0, 3.0, 3.0, 1.0, 1.0]]), 3, normalised=False)
    assert index_TK.tolist() == [[1, 2, 0]]
    torch.testing.assert_close(weight_TK[0], torch.tensor([1.0, 3.0, 3.0, 1.0, 1.0]).softmax(0)[[1, 2, 0]])


def test_preparing_leaves_one_copy_of_the_weights() -> None:
    ops, experts = make_ops(), biased(dense())
    before = experts.nbytes
    ops.prepare(experts)
    assert isinstance(experts.gate_up, tuple) and all(isinstance(one, Linear) for one in experts.gate_up)
    assert experts.gate_up_bias_XN is None and experts.nbytes == before


def test_experts_are_run_op_by_op_and_other_models_recorded() -> None:
    for kernels in native_sets():
        ops = make_ops(kernels=kernels)
        assert ops.recorder is not None and ops.recorder_of(STEP_OPS) is ops.recorder
        assert ops.recorder_of(STEP_OPS + EXPERT_OPS) is None


def test_every_code_and_scale_of_mxfp4() -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    scales = torch.tensor([0, 1, 100, 126, 127, 128, 200, 254] * 2, dtype=torch.uint8).view(1, 16, 1)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
    table = torch.cat((values, -values))
    expected = torch.stack((table[(blocks & 15).long()], table[(blocks >> 4).long()]), -1).flatten(-2)
    expected = (expected * 2.0 ** (scales.double() - 127)).float()
    torch.testing.assert_close(mxfp4.dequantise(blocks, scales), expected, rtol=0, atol=0)


def test_a_scale_of_255_is_not_a_number() -> None:
    blocks, scales = torch.ones(1, 16, dtype=torch.uint8), torch.full((1, 1), 255, dtype=torch.uint8)
    assert mxfp4.dequantise(blocks, scales).isnan().all()
