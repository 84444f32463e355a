"""From the settings to the device, and to the ops that run on it."""

from __future__ import annotations

import torch

from inference_stack.config.derive import on_gpu
from inference_stack.config.tree import EngineConfig
from inference_stack.core.errors import invalid
from inference_stack.engine.accelerator import Accelerator, cuda_device
from inference_stack.engine.device import CpuDevice
from inference_stack.ops.facade import BoundOps
from inference_stack.ops.registry import OPS, NoImplementation, build_ops, default_registry, gpu_registry
from inference_stack.ops.triton.cards import check_device
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace

AnyDevice = CpuDevice | Accelerator


def open_device(engine: EngineConfig, threads: int) -> AnyDevice:
    """The device that settled settings name. Raises `InferenceError` when it cannot be used."""
    if not on_gpu(engine.device):
        return CpuDevice(threads)
    if not torch.cuda.is_available():
        raise invalid(
            f"device is {engine.device}, but torch {torch.__version__} finds no GPU it can use: {_why_no_gpu()}",
            param="engine.device",
        )
    index, count = int(engine.device.partition(":")[2] or 0), torch.cuda.device_count()
    if index >= count:
        raise invalid(f"device is {engine.device}, but there are {count} GPUs here", param="engine.device")
    return cuda_device(index)


def _why_no_gpu() -> str:
    """What torch says when it is made to try."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip() or type(error).__name__
    return "there is none"


def ops_for(engine: EngineConfig, device: AnyDevice, workspace: Workspace) -> BoundOps:
    """The ops that settings ask for. Raises `InferenceError` for kernels that do not go with the device."""
    named = _named(engine)
    if named and not (isinstance(device, Accelerator) and engine.kernels in ("auto", "triton")):
        option, name = next(iter(named.values()))
        raise invalid(f"{option} {name} goes with a GPU and Triton's kernels", param=f"engine.{option}")
    try:
        if engine.kernels == "torch" and engine.weights != "float8":
            return build_ops(workspace, prefer=dict.fromkeys(OPS, "reference"))
        if engine.kernels == "triton" or (isinstance(device, Accelerator) and engine.kernels == "auto"):
            return _gpu_ops(engine, workspace)
        if engine.weights == "float8":
            raise invalid("weights float8 needs Triton's kernels, which are for GPUs", param="engine.weights")
        if isinstance(device, Accelerator):
            raise invalid(f"kernels {engine.kernels!r} are for CPUs, not for {device.name}", param="engine.kernels")
        wanted = "" if engine.kernels == "auto" else engine.kernels
        return build_ops(workspace, registry=default_registry(device.threads, wanted))
    except (ValueError, NoImplementation) as error:
        raise invalid(f"{error}.", param="engine.kernels") from error


def _named(engine: EngineConfig) -> dict[str, tuple[str, str]]:
    """Ops for which an implementation is named, each with the setting that does it and the name."""
    asked = {"attend": ("attention", engine.attention), "linear": ("projections", engine.projections)}
    return {op: (option, name) for op, (option, name) in asked.items() if name != "auto"}


def activations(device: torch.device) -> torch.dtype:
    """What Triton's ops compute in: bf16; fp32 on a CPU, where its interpreter cannot do otherwise."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _gpu_ops(engine: EngineConfig, workspace: Workspace) -> BoundOps:
    """Triton's ops, and what is named in their place."""
    if engine.kv_dtype == "float8":
        try:
            check_device(torch.float8_e4m3fn, workspace.device)
        except ValueError as error:
            raise invalid(f"{error}.", param="engine.kv_dtype") from error
    float8 = engine.weights == "float8"
    if float8 and engine.deterministic:
        raise invalid(
            "weights float8 needs deterministic off: no product of it is the same in every batch",
            param="engine.weights",
        )
    dtype = activations(workspace.device)
    settings = TritonSettings(dtype=dtype, deterministic=engine.deterministic, weights="float8" if float8 else "native")
    registry = gpu_registry(settings)
    asked = {op: "triton" for op in registry.having("triton")} if engine.kernels == "triton" else {}
    named = {op: name for op, (_, name) in _named(engine).items()}
    return build_ops(workspace, registry=registry, prefer=asked | ({"linear": "triton"} if float8 else {}) | named)
