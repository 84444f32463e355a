"""Matrices of different forms, brought to one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from inference_stack.artifacts import canonical
from inference_stack.artifacts.canonical import Form, Grouped
from tests.artifacts.blocks import dense

FORMS = [
    Form(bits, group, zeros, half)
    for bits, group, zeros, half in itertools.product((4, 8), (16, 48, 96), (True, False), (True, False))
]


def random_matrix(form: Form) -> Grouped:
    random = np.random.default_rng(form.group)
    matrix = canonical.empty(form, 5, 96)
    raw = random.integers(0, 256, matrix.codes.shape, dtype=np.uint8)
    matrix.codes[:] = raw.view(matrix.codes.dtype)
    matrix.scale_NG[:] = random.standard_normal(matrix.scale_NG.shape)
    if matrix.zero_NG is not None:
        matrix.zero_NG[:] = random.standard_normal(matrix.zero_NG.shape)
    return matrix


@pytest.mark.parametrize("own", FORMS, ids=str)
def test_the_common_form_of_any_two_keeps_every_number(own: Form) -> None:
    matrix = random_matrix(own)
    for other in FORMS:
        out = canonical.empty(canonical.common_form([own, other]), 5, 96)
        canonical.widen(matrix, out)
        assert np.array_equal(dense(out), dense(matrix)), other


def test_the_common_form_of_equal_forms_is_itself() -> None:
    assert all(canonical.common_form([form, form]) == form for form in FORMS)
