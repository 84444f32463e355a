"""The checks for cards on the kernels for cards, in Triton's interpreter: two that wrote their halves apart have to agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.gpu import tune
from bench.gpu.__main__ import main
from bench.gpu.check import SECTIONS, run_section
from bench.gpu.place import Place
from bench.gpu.timing import Timing

import tests.ops.triton.conftest  # noqa: F401  (what kernels' loops need of the interpreter)
from inference_stack.ops.triton import attention

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


@pytest.mark.timeout(600)
def test_attention_sends_nothing_while_it_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording, sent, recorded = [False], [0], [0]
    upload = attention._upload

    def counted(*given: Any) -> Any:
        assert not recording[0]
        sent[0] += 1
        return upload(*given)

    def replayed(work: Callable[[int], object], place: Place, turns: int) -> Timing:
        for recording[0] in (False, True):
            for turn in range(turns):
                work(turn)
        recording[0] = False
        recorded[0] += 1
        return Timing(1.0, 1.0, 1.0, 1)

    monkeypatch.setattr(attention, "_upload", counted)
    monkeypatch.setattr(tune, "replayed", replayed)
    out = tmp_path / "ops.json"
    arguments = ["--device", "cpu", "--tiny", "--out", str(out), "--kernels", "triton", "--only", "attention"]
    assert main(["ops", *arguments]) == 0
    found = json.loads(out.read_text())
    assert found["skipped"] == []
    assert recorded[0] == len(found["ops"])
    assert sent[0] > 0
