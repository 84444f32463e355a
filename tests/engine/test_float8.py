"""Weights rounded to float8: only where kernels for them are, and only where rows may depend on the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_stack.config.tree import EngineConfig
from inference_stack.core.errors import InferenceError
from inference_stack.engine.device import CpuDevice
from inference_stack.engine.devices import ops_for
from inference_stack.ops.api import Linear
from inference_stack.ops.triton.fp8 import Float8Weight
from inference_stack.ops.workspace import Workspace


def open_ops(**settings: Any) -> Any:
    engine = EngineConfig(device="cpu", weights="float8", **settings)
    return ops_for(engine, CpuDevice(1), Workspace(max_tokens=8, max_samples=8))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"kernels": "auto", "deterministic": False}, "for GPUs"),
        ({"kernels": "torch", "deterministic": False}, "for GPUs"),
        ({"kernels": "triton", "deterministic": True}, "deterministic off"),
    ],
)
def test_what_cannot_be_is_refused_at_start(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(InferenceError, match=reason) as raised:
        open_ops(**settings)
    assert raised.value.info.param == "engine.weights"


def test_projections_are_rounded() -> None:
    ops, weight = open_ops(kernels="triton", deterministic=False), Linear(weight=torch.randn(8, 16))
    ops.prepare(weight)
    assert isinstance(weight.weight, Float8Weight)
