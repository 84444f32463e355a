"""From settings to a device and its ops: what a machine cannot do is refused in words, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inference_stack.config import derive
from inference_stack.config.tree import EngineConfig
from inference_stack.core.errors import InferenceError
from inference_stack.engine import devices
from inference_stack.engine.devices import open_device, ops_for
from inference_stack.ops.fa3 import wheel
from inference_stack.ops.triton import cards
from inference_stack.ops.workspace import Workspace
from tests.engine.emulated import emulated


def refused(error: pytest.ExceptionInfo[InferenceError]) -> tuple[str | None, str]:
    return error.value.info.param, error.value.info.message


def test_a_gpu_that_torch_cannot_use_is_refused_with_torchs_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def old_driver() -> None:
        raise RuntimeError("the driver is too old")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", old_driver)
    with pytest.raises(InferenceError) as error:
        open_device(EngineConfig(device="cuda"), 1)
    param, message = refused(error)
    assert param == "engine.device" and "the driver is too old" in message


def test_kv_in_float8_is_refused_where_the_card_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cards.check_device.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    workspace = Workspace(max_tokens=1, max_samples=1, device="cuda", planned=False)
    with pytest.raises(InferenceError) as error:
        ops_for(EngineConfig(device="cuda", kv_dtype="float8"), emulated(), workspace)
    param, message = refused(error)
    assert param == "engine.kv_dtype" and "8.9" in message
    cards.check_device.cache_clear()


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_that_are_hidden_are_not_taken(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setattr(derive, "DRIVERS", (Path("/"),))
    monkeypatch.setattr(derive, "version", lambda _: "2.13.0")
    assert derive.chosen_device("auto") == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert derive.chosen_device("auto") == "cpu"


def test_a_named_implementation_is_refused_where_it_cannot_run() -> None:
    workspace = Workspace(max_tokens=1, max_samples=1)
    with pytest.raises(InferenceError) as error:
        ops_for(EngineConfig(device="cpu", attention="fa3"), open_device(EngineConfig(device="cpu"), 1), workspace)
    assert refused(error) == ("engine.attention", "attention fa3 goes with a GPU and Triton's kernels")
    with pytest.raises(InferenceError) as error:
        ops_for(EngineConfig(device="cuda", kernels="triton", attention="fa3"), emulated(), workspace)
    assert "fa3 refuses: deterministic is on" in refused(error)[1]


def test_a_named_implementation_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "MODULE", "tests.ops.triton.fake_fa3")
    monkeypatch.setattr(wheel, "refuses_card", lambda _: None)
    monkeypatch.setattr(devices, "activations", lambda _: torch.float16)
    asked = EngineConfig(device="cuda", kernels="triton", attention="fa3", deterministic=False)
    ops = ops_for(asked, emulated(), Workspace(max_tokens=64, max_samples=4))
    assert ops.explain()["attend"].startswith("fa3: preferred by configuration")
