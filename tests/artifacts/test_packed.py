"""AWQ, GPTQ and compressed-tensors matrices against the numbers that they were packed from."""

from __future__ import annotations

import numpy as np
import pytest

from inference_stack.artifacts import canonical
from inference_stack.artifacts.canonical import FloatView
from inference_stack.artifacts.packed import (
    AwqMatrix,
    CompressedArrays,
    CompressedMatrix,
    GptqArrays,
    GptqMatrix,
    PackedMatrix,
)
from inference_stack.core.errors import InferenceError
from tests.artifacts import packers
from tests.artifacts.blocks import dense

N, K = 1032, 96
"""More rows than are converted at once; a number of outputs that is no multiple of 32."""


class Case:
    """Random codes in groups: `codes` [N, K], `zeros` [N, G], fp16 `scales` [N, G], `g_idx` [K]."""

    def __init__(self, bits: int, group: int, shuffled: bool = False, symmetric: bool = False) -> None:
        random = np.random.default_rng(bits * 1000 + group)
        groups = K // group
        self.codes = random.integers(0, 1 << bits, (N, K))
        self.zeros = random.integers(0, 1 << bits, (N, groups))
        if symmetric:
            self.zeros[:] = 1 << bits - 1
        self.scales = random.uniform(0.001, 0.1, (N, groups)).astype(np.float16)
        self.g_idx = np.arange(K) // group
        if shuffled:
            self.g_idx = random.permutation(self.g_idx)
        self.numbers = packers.plain(self.codes, self.zeros, self.scales, self.g_idx)


def read(matrix: PackedMatrix) -> np.ndarray:
    """The numbers in the columns' own order."""
    out = canonical.empty(matrix.form, *matrix.shape)
    matrix.read(out)
    found = dense(out)
    if matrix.order_K is None:
        return found
    own = np.empty_like(found)
    own[:, matrix.order_K] = found
    return own


def view(numbers: np.ndarray) -> FloatView:
    return FloatView(numbers, bf16=False)


def awq(case: Case) -> AwqMatrix:
    parts = packers.awq(case.codes, case.zeros, case.scales)
    return AwqMatrix("m", parts["qweight"], parts["qzeros"], view(parts["scales"]))


def gptq(case: Case, bits: int = 4, less_one: bool = False, with_order: bool = True) -> GptqMatrix:
    parts = packers.gptq(case.codes, case.zeros, case.scales, case.g_idx, bits, less_one)
    g_idx = parts["g_idx"] if with_order else None
    arrays = GptqArrays(qweight=parts["qweight"], qzeros=parts["qzeros"], scales=view(parts["scales"]), g_idx=g_idx)
    return GptqMatrix("m", arrays, bits, less_one)


def compressed(parts: packers.Parts) -> CompressedMatrix:
    arrays = CompressedArrays(
        codes=parts["weight_packed"] if "weight_packed" in parts else parts["weight"],
        scale=view(parts["weight_scale"]),
        zero=parts.get("weight_zero_point"),
        g_idx=parts.get("weight_g_idx"),
    )
    return CompressedMatrix("m", arrays, (N, K))


@pytest.mark.parametrize("group", [16, 32, 48, K])
def test_awq(group: int) -> None:
    case = Case(4, group)
    assert np.array_equal(read(awq(case)), case.numbers)


@pytest.mark.parametrize("less_one", [True, False])
@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [16, 32, K])
def test_gptq(group: int, bits: int, shuffled: bool, less_one: bool) -> None:
    case = Case(bits, group, shuffled)
    matrix = gptq(case, bits, less_one)
    assert (matrix.order_K is not None) == (shuffled and group < K)
    assert np.array_equal(read(matrix), case.numbers)


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_without_an_order(bits: int) -> None:
    case = Case(bits, 32)
    assert np.array_equal(read(gptq(case, bits, with_order=False)), case.numbers)


def test_symmetric_8_bit_codes_have_zeros_of_zero() -> None:
    matrix = gptq(Case(8, 32, symmetric=True), 8)
    out = canonical.empty(matrix.form, *matrix.shape)
    matrix.read(out)
    assert out.zero_NG is not None and not out.zero_NG.any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [16, 32, K])
def test_pack_quantized(group: int, bits: int, shuffled: bool, symmetric: bool) -> None:
    case = Case(bits, group, shuffled, symmetric)
    zeros, g_idx = None if symmetric else case.zeros, case.g_idx if shuffled else None
    parts = packers.pack_quantized(case.codes, zeros, case.scales, g_idx, bits)
    assert np.array_equal(read(compressed(parts)), case.numbers)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, K])
def test_int_quantized(group: int, symmetric: bool) -> None:
    case = Case(8, group, symmetric=symmetric)
    parts = packers.int_quantized(case.codes, None if symmetric else case.zeros, case.scales)
    assert np.array_equal(read(compressed(parts)), case.numbers)


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_one_scale_for_a_whole_matrix(shape: tuple[int, ...]) -> None:
    case = Case(8, K, symmetric=True)
    case.scales[:] = 0.25
    parts = packers.int_quantized(case.codes, None, np.full(shape, 0.25, np.float16))
    assert np.array_equal(read(compressed(parts)), (case.codes - 128) * np.float32(0.25))


def test_an_order_that_says_nothing_is_none() -> None:
    case = Case(4, 32, symmetric=True)
    parts = packers.pack_quantized(case.codes, None, case.scales, np.full(K, -1))
    assert compressed(parts).order_K is None


def test_bfloat16_scales_are_widened() -> None:
    bits = np.array([[0x3F80, 0x3DCD]], np.uint16)
    expected = np.array([[1.0, 0.10009765625]], np.float32)
    assert np.array_equal(FloatView(bits, bf16=True).fp32(), expected)


def test_groups_that_are_no_multiple_of_16_are_refused() -> None:
    with pytest.raises(InferenceError, match="12 scales for 96 inputs; only equal groups of a multiple of 16"):
        awq(Case(4, 8))


def test_other_widths_are_refused() -> None:
    case = Case(4, 32)
    case.g_idx = np.arange(K * 2) // 64
    with pytest.raises(InferenceError, match="GPTQ with 2 bits is not supported"):
        gptq(case)


def test_unequal_groups_are_refused() -> None:
    case = Case(4, 32, shuffled=True)
    case.g_idx[:] = 0
    with pytest.raises(InferenceError, match="do not form groups of 32 each"):
        gptq(case)


def test_a_part_of_another_shape_is_named() -> None:
    case = Case(4, 32)
    parts = packers.awq(case.codes, case.zeros[:, :2], case.scales)
    with pytest.raises(InferenceError, match=r"'m\.qzeros' has shape \[2, 129\]; \[3, 129\] follows"):
        AwqMatrix("m", parts["qweight"], parts["qzeros"], view(parts["scales"]))
