"""Projections by quantised weights: exact integers, the definition's result, and a row's bits whatever its company."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inference_stack.ops.api import Linear, Quantised
from inference_stack.ops.facade import BoundOps
from inference_stack.ops.reference.quantised import act_block, dequantise, product, quantise_rows, rounded
from tests.ops.parts import make_ops, native_sets

FORMS = [
    # bits, group, inputs, outputs, fp16 scales, zeros, shuffled columns
    (4, 32, 96, 37, True, True, False),
    (4, 32, 64, 16, True, False, False),
    (4, 64, 128, 100, False, True, False),
    (4, 128, 256, 33, True, True, True),
    (4, 16, 48, 20, False, True, False),
    (4, 576, 576, 24, False, False, False),
    (8, 32, 96, 37, True, False, False),
    (8, 32, 64, 50, False, True, True),
    (8, 16, 80, 17, False, False, False),
    (8, 128, 128, 16, True, True, False),
]


@lru_cache
def weight_of(form: int) -> Quantised:
    bits, group, inputs, outputs, half, zeros, shuffled = FORMS[form]
    generator = torch.Generator().manual_seed(form)
    codes = torch.randint(0, 256, (outputs, inputs // 2 if bits == 4 else inputs), generator=generator)
    scale = torch.rand(outputs, inputs // group, generator=generator) * 0.1
    scale = scale.to(torch.float16) if half else scale
    return Quantised(
        bits=bits,
        codes=codes.to(torch.uint8) if bits == 4 else (codes - 128).to(torch.int8),
        scale_NG=scale,
        zero_NG=-7 * scale if zeros else None,
        group=group,
        order_K=torch.randperm(inputs, generator=generator).to(torch.int32) if shuffled else None,
    )


@lru_cache
def prepared(form: int, ops: BoundOps) -> Linear:
    linear = Linear(weight=weight_of(form), looked_up=True)
    ops.prepare(linear)
    return linear


@pytest.mark.parametrize("form", range(len(FORMS)))
@pytest.mark.parametrize("rows", [1, 5, 8, 27])
def test_the_result_is_the_definitions(ops: BoundOps, form: int, rows: int) -> None:
    weight = weight_of(form)
    x = torch.randn(rows, weight.shape[1]) * 3
    expected = product(x, weight)
    found = ops.linear(x, prepared(form, ops))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@settings(max_examples=40, deadline=None)
@given(form=st.integers(0, len(FORMS) - 1), start=st.integers(0, 140), rows=st.integers(1, 150))
def test_a_row_is_the_same_alone_and_in_any_batch(ops: BoundOps, form: int, start: int, rows: int) -> None:
    weight = weight_of(form)
    x = torch.randn(150, weight.shape[1], generator=torch.Generator().manual_seed(form))
    whole = ops.linear(x, prepared(form, ops))
    part = x[start : start + rows].clone()
    assert torch.equal(ops.linear(part, prepared(form, ops)), whole[start : start + rows])


def test_a_broken_row_fails_alone(ops: BoundOps) -> None:
    x = torch.randn(3, 96)
    alone = ops.linear(x[2:], prepared(0, ops)).clone()
    x[0, 5], x[1, 90] = torch.nan, torch.inf
    found = ops.linear(x, prepared(0, ops))
    assert not found[:2].isfinite().any(1).any()
    assert torch.equal(found[2:], alone)


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_a_table_is_looked_up_exactly(ops: BoundOps, form: int) -> None:
    weight = weight_of(form)
    tokens = torch.tensor([0, weight.shape[0] - 1, 3, 3])
    assert torch.equal(ops.embed(tokens, prepared(form, ops)), dequantise(weight)[tokens])


@pytest.fixture(params=native_sets())
def native(request: pytest.FixtureRequest) -> BoundOps:
    return make_ops(kernels=request.param)


def exact(codes: Tensor, bits: int, group: int) -> Linear:
    """A weight of these codes with scales of one, so that products are whole numbers times activation scales."""
    packed = codes.to(torch.int8) if bits == 8 else (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
    ones = torch.ones(codes.shape[0], codes.shape[1] // group)
    return Linear(weight=Quantised(bits=bits, codes=packed, scale_NG=ones, zero_NG=None, group=group))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [16, 32])
def test_integer_sums_are_exact(native: BoundOps, bits: int, group: int) -> None:
    low, high = (0, 16) if bits == 4 else (-128, 128)
    codes = torch.randint(low, high, (33, group))
    codes[0], codes[1] = low, high - 1
    x = torch.randint(-127, 128, (9, group))
    x[:, 0] = 127  # the activations' scale is then 1
    x[0], x[1], x[2] = 127, torch.tensor([127, -127]).repeat(group // 2), -127
    expected = (x[:, None, :] * codes[None]).sum(-1)
    assert torch.equal(native.linear(x.float(), exact(codes, bits, group)).long(), expected)


@pytest.mark.parametrize("seed", [0, 81, 194])  # the last two have an element halfway between two integers
@pytest.mark.parametrize("group", [16, 32])
def test_activations_are_quantised_to_the_references_integers(native: BoundOps, group: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(64, 4 * group) * torch.logspace(-20, 20, 64)[:, None]
    x[0], x[1, :group], x[2] = 0.0, 1e-39, -x[2].abs()
    identity = exact(torch.eye(4 * group, dtype=torch.int64), 8, group)
    found = native.linear(x, identity)
    codes, scale = quantise_rows(x, act_block(group))
    assert torch.equal(found, rounded(x, act_block(group)))
    assert torch.equal(
        (found.unflatten(1, (-1, group)) / scale[..., None]).nan_to_num().round().flatten(1).char(), codes
    )


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_every_kernel_set_and_thread_count_gives_the_same_bits(form: int) -> None:
    x = torch.randn(70, FORMS[form][2], generator=torch.Generator().manual_seed(1))
    results = [
        make_ops(kernels=kernels, threads=threads).linear(x, Linear(weight=weight_of(form)))
        for kernels in native_sets()
        for threads in (1, 3)
    ]
    assert all(torch.equal(results[0], result) for result in results)
