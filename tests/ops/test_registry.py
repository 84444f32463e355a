"""The registry chooses by capability and says why; the purity check refuses tensor work outside ops; a step's addresses repeat."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inference_stack.ops.api import HeadSpec, Linear, StepInputs
from inference_stack.ops.facade import BoundOps
from inference_stack.ops.implementation import TOKEN_ROWS, TRANSPOSED_KEYS, Implementation
from inference_stack.ops.purity import TensorOperationOutsideOps, only_ops
from inference_stack.ops.registry import OPS, NoImplementation, Registry, build_ops, reference_implementations
from inference_stack.ops.workspace import Workspace, WorkspaceOverflow
from tests.ops.parts import Paged, make_ops, native_sets, rope_table


def doubling(name: str, speed: int, refusal: str | None = None) -> Implementation:
    return Implementation(
        op="act_mul", name=name, speed=speed, refuses=lambda _: refusal, build=lambda _: lambda x, kind: x * 2
    )


def test_every_op_has_the_reference_and_a_reason() -> None:
    explained = make_ops().explain()
    assert set(explained) == set(OPS)
    assert all(text.startswith("reference: preferred by configuration") for text in explained.values())


def test_the_fastest_that_can_run_is_chosen() -> None:
    registry = Registry(reference_implementations())
    registry.add(doubling("quick", 5))
    registry.add(doubling("quickest", 9, refusal="needs an instruction set this CPU lacks"))
    ops = build_ops(Workspace(max_tokens=4, max_samples=4), registry=registry)
    assert torch.equal(ops.act_mul(torch.ones(1, 2), "silu"), torch.full((1, 2), 2.0))
    text = ops.explain()["act_mul"]
    assert text.startswith("quick: fastest that can run here, before reference")
    assert "quickest refuses: needs an instruction set this CPU lacks" in text


def test_a_preference_wins_and_an_impossible_one_is_refused() -> None:
    registry = Registry(reference_implementations())
    registry.add(doubling("quick", 5, refusal="not on Tuesdays"))
    workspace = Workspace(max_tokens=4, max_samples=4)
    with pytest.raises(NoImplementation, match="not on Tuesdays"):
        build_ops(workspace, registry=registry, prefer={"act_mul": "quick"})
    ops = build_ops(workspace, registry=registry, prefer={"act_mul": "reference"})
    assert ops.explain()["act_mul"].startswith("reference: preferred by configuration")
    with pytest.raises(KeyError, match="no such op: spin"):
        build_ops(workspace, prefer={"spin": "reference"})


def reading(layout: str) -> Implementation:
    return Implementation(
        op="attend", name="quick", speed=5, refuses=lambda _: None, build=lambda _: lambda *_: None, kv_layout=layout
    )


def test_kv_is_read_in_the_layout_in_which_it_is_written() -> None:
    workspace = Workspace(max_tokens=4, max_samples=4)
    build_ops(workspace, registry=Registry((*reference_implementations(), reading(TRANSPOSED_KEYS))))
    with pytest.raises(NoImplementation, match="rope_store as reference: transposed keys, attend as quick: token rows"):
        build_ops(workspace, registry=Registry((*reference_implementations(), reading(TOKEN_ROWS))))


def test_a_kv_dtype_that_an_op_does_not_know_is_refused() -> None:
    assert make_ops().refuses_kv("float8") is None
    registry = Registry((*reference_implementations(), reading(TRANSPOSED_KEYS)))
    ops = build_ops(Workspace(max_tokens=4, max_samples=4), registry=registry)
    assert ops.refuses_kv("float8") == "attend as quick stores no KV in float8; it knows none"


@pytest.mark.parametrize("kernels", native_sets())
def test_native_kernels_refuse_kv_in_fp8(kernels: str) -> None:
    refusal = make_ops(kernels=kernels).refuses_kv("float8")
    assert (
        refusal == f"rope_store as native-{kernels} stores no KV in float8; it knows bfloat16, float16, float32, int8"
    )


class OneLayer:
    """A model of one layer that calls only ops."""

    def __init__(self) -> None:
        self.heads = HeadSpec(q_heads=4, kv_heads=2, head_dim=16, rope=rope_table(256, 16))
        self.page = Paged(self.heads, granules=2)
        self.table = Linear(weight=torch.randn(50, 32), looked_up=True)
        self.norm_D = torch.rand(32)
        self.qkv, self.out, self.up, self.down = (
            Linear(weight=torch.randn(n, k) * 0.1) for n, k in ((128, 32), (32, 64), (96, 32), (32, 48))
        )

    def forward(self, ops: BoundOps, step: StepInputs) -> Tensor:
        x = ops.embed(step.tokens_T, self.table)
        q = ops.rope_store(ops.linear(ops.rmsnorm(x, self.norm_D, 1e-5), self.qkv), self.heads, step.kv[0], step)
        o = ops.linear(ops.attend(q, step.kv[0], step, 0.25), self.out)
        h, r = ops.add_rmsnorm(o, x, self.norm_D, 1e-5)
        y = ops.linear(ops.act_mul(ops.linear(h, self.up), "silu"), self.down)
        return ops.add_rmsnorm(y, r, self.norm_D, 1e-5)[0]

    def step(self, tokens: int) -> StepInputs:
        return self.page.step([(self.page.sequence(torch.zeros(tokens, 1)), 0, tokens)])[0]

    def logits(self, ops: BoundOps, step: StepInputs) -> Tensor:
        return ops.linear(ops.select(self.forward(ops, step), step.tokens_T[:1]), self.table)


def test_a_model_of_ops_alone_passes_the_purity_check() -> None:
    model, ops = OneLayer(), make_ops()
    step = model.step(5)
    with only_ops(ops):
        hidden = model.forward(ops, step)
    assert hidden.shape == (5, 32)


@pytest.mark.parametrize("work", [lambda x: x + 1, lambda x: x.view(-1), lambda x: x[0], lambda x: x.t()])
def test_any_other_tensor_operation_is_refused(work: object) -> None:
    ops, x = make_ops(), torch.randn(3, 4)
    with only_ops(ops), pytest.raises(TensorOperationOutsideOps, match="outside an op"):
        work(ops.rmsnorm(x, torch.ones(4), 1e-5))  # type: ignore[operator]


def test_an_op_that_raises_leaves_the_check_on() -> None:
    ops = make_ops()
    with pytest.raises(RuntimeError):
        ops.linear(torch.randn(2, 3), Linear(weight=torch.randn(4, 5)))
    assert not ops.inside


def test_a_one_token_step_plans_for_every_step_and_addresses_repeat() -> None:
    model, ops = OneLayer(), make_ops(max_tokens=64, max_samples=2)
    model.logits(ops, model.step(1))
    ops.workspace.seal()
    seen = []
    for tokens in (64, 1, 64, 17, 64):
        step = model.step(tokens)
        seen.append((model.forward(ops, step).data_ptr(), model.logits(ops, step).data_ptr()))
        assert ops.workspace.live == 0
    assert len(set(seen)) == 1
    with pytest.raises(WorkspaceOverflow):
        model.forward(ops, model.step(65))


def test_results_do_not_depend_on_the_workspace() -> None:
    model, measuring, planned = OneLayer(), make_ops(64, 2), make_ops(64, 2)
    model.logits(planned, model.step(1))
    planned.workspace.seal()
    step = model.step(40)
    assert torch.equal(model.logits(measuring, step), model.logits(planned, step))
