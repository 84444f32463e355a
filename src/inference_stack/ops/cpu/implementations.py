"""The native ops as the registry knows them. Without the compiled extension they refuse, saying why, and torch's ops serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from inference_stack.ops.cpu.attention import KV_DTYPES, CpuAttention
from inference_stack.ops.cpu.linear import CpuLinear
from inference_stack.ops.cpu.native import Native, extension
from inference_stack.ops.cpu.rows import CpuRows
from inference_stack.ops.cpu.sampler import CpuSampler
from inference_stack.ops.cpu.selfcheck import PORTABLE, choose
from inference_stack.ops.facade import KV_OPS
from inference_stack.ops.implementation import TRANSPOSED_KEYS, Implementation
from inference_stack.ops.reference.experts import GroupedExperts
from inference_stack.ops.workspace import Workspace

Build = Callable[[Native, Workspace], Callable[..., Any]]

BUILDERS: Final[dict[str, Build]] = {
    "embed": lambda native, workspace: CpuRows(native, workspace).embed,
    "rmsnorm": lambda native, workspace: CpuRows(native, workspace).rmsnorm,
    "add_rmsnorm": lambda native, workspace: CpuRows(native, workspace).add_rmsnorm,
    "linear": CpuLinear,
    "rope_store": lambda native, workspace: CpuAttention(native, workspace).rope_store,
    "attend": lambda native, workspace: CpuAttention(native, workspace).attend,
    "act_mul": lambda native, workspace: CpuRows(native, workspace).act_mul,
    "experts": lambda native, workspace: GroupedExperts(
        workspace, CpuLinear(native, workspace), CpuRows(native, workspace).act_mul
    ),
    "select": lambda native, workspace: CpuRows(native, workspace).select,
    "sample": lambda native, _: CpuSampler(native).sample,
    "score": lambda native, _: CpuSampler(native).score,
}
EAGER: Final = ("experts",)
"""Decide on the host what to run, and leave some of it to torch: they cannot be recorded, and torch has a part in their bits."""
NUMERICS: Final = "native 1"
"""All kernel sets give the same bits, with any number of threads. The number changes when the bits of any op do."""
SPEED: Final = 10
SPEED_PORTABLE: Final = -1
"""Portable kernels are there for the self-check and for the bits; torch is faster."""


def cpu_implementations(threads: int, kernels: str) -> tuple[Implementation, ...]:
    """The native implementation of every op, sharing threads and weights. Raises ValueError for unknown `kernels`."""
    module = extension()
    if isinstance(module, str):
        return tuple(_absent(op, module) for op in BUILDERS)
    name, remarks = choose(module, kernels)
    native = Native(module, threads, name)
    title = "; ".join([f"native-{name}", *remarks])
    speed = SPEED if name != PORTABLE or kernels else SPEED_PORTABLE
    return tuple(_present(op, build, native, title, speed) for op, build in BUILDERS.items())


def _on_cpu(device: torch.device) -> str | None:
    return None if device.type == "cpu" else "it runs on CPUs"


def _present(op: str, build: Build, native: Native, name: str, speed: int) -> Implementation:
    return Implementation(
        op=op,
        name=name,
        speed=speed,
        refuses=_on_cpu,
        build=lambda workspace: build(native, workspace),
        recorder=None if op in EAGER else native,
        numerics="" if op in EAGER else NUMERICS,
        kv_layout=TRANSPOSED_KEYS if op in KV_OPS else "",
        kv_dtypes=frozenset(KV_DTYPES if op in KV_OPS else ()),
    )


def _absent(op: str, reason: str) -> Implementation:
    def nothing(_: Workspace) -> Callable[..., Any]:
        raise RuntimeError(reason)

    return Implementation(op=op, name="native", speed=SPEED, refuses=lambda _: reason, build=nothing)
