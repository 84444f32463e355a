"""Settings that follow from the machine: what is computed on, and what that makes of `auto` and 0.

Looked up without importing anything slow, since it is done before workers are spawned; whether the device works is found out
by the worker that uses it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from inference_stack.config.tree import Config, EngineConfig
from inference_stack.core.errors import invalid

DRIVERS: Final = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
"""Files that the drivers of GPUs make: NVIDIA's, AMD's."""
HIDES: Final = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""Environment variables that name the GPUs a process may see: empty or -1 is none."""
GPU: Final = "cuda"

CPU_DEFAULTS: Final = {"max_running": 64, "max_batch_tokens": 512, "kv_dtype": "float16"}
GPU_DEFAULTS: Final = {"max_running": 256, "max_batch_tokens": 2048, "kv_dtype": "bfloat16"}
"""A GPU reads its weights once a step however many rows there are, and needs about a thousand tokens to be busy with arithmetic."""


def settled(config: Config) -> Config:
    """The configuration with nothing left open. Raises `InferenceError` for a device that does not exist."""
    return replace(config, engine=settled_engine(config.engine, simulated=config.node.simulated))


def settled_engine(engine: EngineConfig, simulated: bool = False) -> EngineConfig:
    """The engine's settings with nothing left open; a simulated one computes on nothing."""
    device = "cpu" if simulated else chosen_device(engine.device)
    defaults = GPU_DEFAULTS if on_gpu(device) else CPU_DEFAULTS
    open_ones = {name: value for name, value in defaults.items() if getattr(engine, name) in (0, "auto")}
    return replace(engine, device=device, **open_ones)  # type: ignore[arg-type]


def nth_device(first: str, number: int) -> str:
    """The device of a node's worker with this number, from 0: GPUs are taken one after the other."""
    kind, _, index = first.partition(":")
    return f"{kind}:{int(index or 0) + number}" if kind == GPU else first


def on_gpu(device: str) -> bool:
    """Whether a device that was chosen is a GPU."""
    return device.partition(":")[0] == GPU


def chosen_device(wanted: str) -> str:
    """`cpu`, `cuda` or `cuda:N`. Raises `InferenceError` for anything else."""
    kind, colon, number = wanted.partition(":")
    if wanted == "auto":
        return GPU if has_gpu() else "cpu"
    if wanted == "cpu" or (kind == GPU and (number.isdigit() or not colon)):
        return wanted
    raise invalid(f"device is {wanted!r}; it may be auto, cpu, cuda or cuda:N", param="engine.device")


def has_gpu() -> bool:
    """Whether there is a driver, a torch that was built for GPUs, and none of the settings that hide GPUs from it."""
    if any(os.environ.get(name) in ("", "-1") for name in HIDES):
        return False
    try:
        build = version("torch")
    except PackageNotFoundError:
        return False
    return any(path.exists() for path in DRIVERS) and not build.endswith("+cpu")
