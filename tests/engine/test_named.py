"""Engines whose attention or projections are named, with fakes of the packages: served end to end, or refused before serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from inference_stack.core.errors import InferenceError
from inference_stack.engine import devices
from inference_stack.ops.fa3 import wheel as fa3
from inference_stack.ops.humming import wheel as humming
from tests.engine.emulated import emulated
from tests.engine.house import Engine, engine, prompt, request, save_tiny
from tests.models.quantised_maker import FORMATS, write
from tests.models.tiny import make


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packages, on an accelerator that computes in fp16."""
    monkeypatch.setattr(fa3, "MODULE", "tests.ops.triton.fake_fa3")
    monkeypatch.setattr(fa3, "refuses_card", lambda _: None)
    monkeypatch.setattr(humming, "ROOT", "tests.ops.triton.fake_humming")
    monkeypatch.setattr(humming, "refuses_card", lambda *_: None)
    monkeypatch.setattr(devices, "activations", lambda _: torch.float16)


def served(path: Path, **settings: Any) -> Engine:
    chosen: dict[str, Any] = {"kernels": "triton", "deterministic": False, "kv_dtype": "float16", "kv_memory": "1MiB"}
    return engine(path, device=emulated(), recorded_steps=False, max_running=4, **(chosen | settings))


def tokens(one: Engine, model: str) -> list[list[int]]:
    asked = [request(prompt(5 + 12 * n, n), f"r{n}", model, temperature=0.0, max_tokens=3) for n in range(2)]
    return [answer.tokens for answer in one.run(asked)]


def test_attention_by_name_says_what_ours_says(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path / "llama", head_dim=64, num_hidden_layers=1)
    assert tokens(served(path, attention="fa3"), "llama") == tokens(served(path), "llama")


def test_heads_that_a_name_does_not_know_are_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="heads of 12; it knows 64, 128, 192, 256; set attention to auto") as error:
        served(save_tiny("llama", tmp_path / "llama"), attention="fa3")
    assert error.value.info.param == "engine.attention"


def test_kv_that_a_name_does_not_know_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="attend as fa3 stores no KV in int8; it knows float16") as error:
        served(save_tiny("llama", tmp_path / "llama", head_dim=64), attention="fa3", kv_dtype="int8")
    assert error.value.info.param == "engine.kv_dtype"


SIDES = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "num_hidden_layers": 1}


def test_projections_by_name_say_what_ours_say(tmp_path: Path) -> None:
    write(make("llama", **SIDES), tmp_path / "llama", FORMATS["awq"])
    named = served(tmp_path / "llama", projections="humming")
    assert tokens(named, "llama") == tokens(served(tmp_path / "llama"), "llama")
    assert "humming: preferred by configuration" in named.ready.ledger.derived["kernels"]


def test_weights_that_a_name_cannot_hold_are_refused_at_start(tmp_path: Path) -> None:
    write(make("llama", hidden_size=64, intermediate_size=96), tmp_path / "llama", FORMATS["awq"])
    with pytest.raises(InferenceError, match=r"multiples of 128; this weight is .*; set projections to auto") as error:
        served(tmp_path / "llama", projections="humming")
    assert error.value.info.param == "engine.projections"
