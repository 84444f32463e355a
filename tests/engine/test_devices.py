"""From settings to a device and its ops: what a machine cannot do is refused in words, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inference_stack.config import derive
from inference_stack.config.tree import EngineConfig
from inference_stack.core.errors import InferenceError
from inference_stack.engine.devices import open_device, ops_for
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
