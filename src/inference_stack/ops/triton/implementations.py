"""The Triton ops as the registry knows them. Without Triton, or without a GPU it can compile for, they refuse, saying why."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, Final

import torch

from inference_stack.core.kv_spec import DTYPE_BYTES
from inference_stack.ops.facade import KV_OPS
from inference_stack.ops.implementation import TOKEN_ROWS, Implementation
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace

BUILDERS: Final[dict[str, str]] = {
    "rope_store": "inference_stack.ops.triton.rope_store:RopeStore",
    "attend": "inference_stack.ops.triton.attention:Attention",
    "experts": "inference_stack.ops.triton.experts:TritonExperts",
    "embed": "inference_stack.ops.triton.rows:Embed",
    "select": "inference_stack.ops.triton.rows:Select",
    "rmsnorm": "inference_stack.ops.triton.norms:RmsNorm",
    "add_rmsnorm": "inference_stack.ops.triton.norms:AddRmsNorm",
    "act_mul": "inference_stack.ops.triton.activation:ActMul",
    "sample": "inference_stack.ops.triton.sampler:Sampler",
    "score": "inference_stack.ops.triton.score:Score",
    "linear": "inference_stack.ops.triton.linear:TritonLinear",
}
"""For each op, module and attribute of what builds it from (workspace, settings). Loaded when the op has been chosen."""

OLDEST: Final = (8, 0)
"""Compute capability from which bf16 matrix instructions exist."""
SPEED: Final = 20


def triton_implementations(settings: TritonSettings) -> tuple[Implementation, ...]:
    """The Triton implementation of every op that has one."""
    return tuple(
        Implementation(
            op=op,
            name="triton",
            speed=SPEED,
            refuses=refuses,
            build=partial(_build, place, settings),
            graphs=True,
            kv_layout=TOKEN_ROWS if op in KV_OPS else "",
            kv_dtypes=frozenset(DTYPE_BYTES if op in KV_OPS else ()),
        )
        for op, place in BUILDERS.items()
    )


def refuses(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on a device, or None."""
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        old = torch.version.hip is None and capability < OLDEST
        return f"compute capability {capability[0]}.{capability[1]} is older than 8.0" if old else None
    from inference_stack.ops.triton.kernel import interpreting

    return None if interpreting() else "it runs on GPUs"


def _build(place: str, settings: TritonSettings, workspace: Workspace) -> Callable[..., Any]:
    module, name = place.split(":")
    made: Callable[..., Any] = getattr(importlib.import_module(module), name)(workspace, settings)
    return made
