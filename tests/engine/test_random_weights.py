"""An engine that serves a directory with nothing but a configuration: weights are drawn, the same ones at every start."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_stack.core.errors import InferenceError
from tests.engine.house import engine, request, save_tiny


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    path = save_tiny("llama", tmp_path / "bare")
    (path / "model.safetensors").unlink()
    return path


def test_a_bare_configuration_is_served_with_the_same_weights_at_every_start(bare: Path) -> None:
    first, second = (engine(bare, load_format="random") for _ in range(2))
    assert "random" in str(first.ready.ledger.memory)
    assert first.ready.models[0].numerics_id == second.ready.models[0].numerics_id
    asked = request([1, 2, 3], model="bare")
    answer = first.alone(asked)
    assert len(answer.tokens) > 0
    assert answer.tokens == second.alone(asked).tokens


def test_without_asking_for_it_missing_weights_are_an_error(bare: Path) -> None:
    with pytest.raises(InferenceError, match=r"holds no weights.*load_format random"):
        engine(bare)
