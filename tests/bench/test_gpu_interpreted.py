"""The checks for cards on the kernels for cards, in Triton's interpreter: two that wrote their halves apart have to agree."""

from __future__ import annotations

import pytest
import torch
from bench.gpu.check import SECTIONS, run_section
from bench.gpu.place import Place

import tests.ops.triton.conftest  # noqa: F401  (what kernels' loops need of the interpreter)

CPU = Place(torch.device("cpu"), tiny=True)
QUICK = ("rows", "linear")
LONG = tuple(name for name in SECTIONS if name not in (*QUICK, "engine"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("section", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)])
def test_kernels_pass_the_checks_for_cards(section: str) -> None:
    found = run_section(CPU, section, "triton", None)
    assert any("triton: " in one["note"] for one in found if one["name"] == "kernels")
    assert len(found) > 5
    assert [one for one in found if not one["ok"]] == []
