"""The benchmark of weights: it runs through on a CPU, and notices a matrix that is not the file's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.gpu import weights
from bench.gpu.place import Place

from inference_stack.models.loader import load_model

CPU = Place(torch.device("cpu"), tiny=True)


def test_it_runs_through_and_finds_everything_right(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert weights.main(["--device", "cpu", "--tiny", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["load"]["wrong"] == 0
    assert found["load"]["rate"] > 0
    assert [one["what"] for one in found["skipped"]] == ["sleep"]


def test_a_wrong_matrix_is_noticed(tmp_path: Path) -> None:
    raw = json.loads((weights.SHAPES / "llama-3.1-8b.json").read_text()) | weights.TINY
    files = weights.write_checkpoint(raw, tmp_path / "model", CPU)
    loaded = load_model(files)
    assert weights.differing(loaded, files) == 0
    model: Any = loaded.model
    model.blocks[1].mlp.down.weight[3, 4] += 1.0
    assert weights.differing(loaded, files) == 1


@pytest.mark.parametrize("shape", ["llama-3.1-8b", "smollm2-135m"])
def test_checkpoints_hold_all_that_the_shape_has(tmp_path: Path, shape: str) -> None:
    raw = json.loads((weights.SHAPES / f"{shape}.json").read_text()) | weights.TINY
    files = weights.write_checkpoint(raw, tmp_path / "model", CPU)
    assert len(load_model(files).linears) == 2 + 4 * weights.TINY["num_hidden_layers"]
