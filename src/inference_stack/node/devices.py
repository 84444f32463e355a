"""What this machine computes with: sets of CPU cores, each for one worker, and GPUs as NVML tells of them.

Light, since workers are spawned before anything slow is imported. GPUs are told of here; whether they work is found out by the
worker that uses one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from inference_stack.core.errors import invalid
from inference_stack.core.stats import Ledger

USED_GPU = "found"
UNUSED_GPU = "found, not used: the engine was told to compute on CPU cores, or its torch knows no GPU"
NO_NVML = "there is a driver: pip install inference-stack[nvml] to have GPUs listed"
DRIVER = Path("/dev/nvidiactl")


@dataclass(frozen=True, slots=True)
class CoreSet:
    """The cores of one worker, and how many threads it computes with. No `cores`: all that this process may run on."""

    cores: tuple[int, ...] = ()
    threads: int = 0

    @property
    def title(self) -> str:
        """The set as people write it: `cores 0-3`."""
        if not self.cores:
            return ""
        first, last = self.cores[0], self.cores[-1]
        whole = last - first + 1 == len(self.cores)
        text = f"{first}-{last}" if whole and last > first else ",".join(map(str, self.cores))
        return f"cores {text}" if len(self.cores) > 1 else f"core {text}"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. Memory in bytes."""

    name: str
    total: int
    free: int


def own_cores() -> tuple[int, ...]:
    """The cores that this process may run on, in order."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def core_sets(workers: int, threads: int = 0, pinned: bool = True) -> tuple[CoreSet, ...]:
    """One set for each worker. All have as many threads, so that all compute alike; cores that are left over go to the first sets.

    One worker, or workers that are not `pinned` since they compute nothing, may use every core. Raises `InferenceError` when
    there are more workers than cores.
    """
    if workers == 1 or not pinned:
        return (CoreSet(threads=threads),) * workers
    cores = own_cores()
    if workers > len(cores):
        raise invalid(
            f"{workers} workers do not fit on {len(cores)} cores", param="node.workers", code="invalid_config"
        )
    share, more = divmod(len(cores), workers)
    starts = [number * share + min(number, more) for number in range(workers + 1)]
    return tuple(CoreSet(cores[begin:end], threads or share) for begin, end in pairwise(starts))


def gpus(library: str = "pynvml") -> tuple[Gpu, ...] | None:
    """This machine's GPUs; None when there may be some, and the library that knows is not installed."""
    if importlib.util.find_spec(library) is None:
        return None if DRIVER.exists() else ()
    nvml = importlib.import_module(library)
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()  # no driver: no GPU that could be used
    try:
        found = [_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
        return tuple(one for one in found if one is not None)
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Gpu | None:
    """One GPU; None for one that does not tell its memory."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name, memory = nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError:
        return None
    return Gpu(name if isinstance(name, str) else name.decode(), int(memory.total), int(memory.free))


def gpu_ledger(found: tuple[Gpu, ...] | None, used: bool = False) -> Ledger:
    """What NVML says of GPUs, for people; empty where there are none. `used`: the engine computes on them."""
    if found is None:
        return Ledger(derived={"GPUs": NO_NVML})
    memory, derived = [], {}
    for number, gpu in enumerate(found):
        label = f"GPU {number}: {gpu.name}"
        memory += [(f"{label}: total", gpu.total), (f"{label}: free", gpu.free)]
        derived[label] = USED_GPU if used else UNUSED_GPU
    return Ledger(memory=tuple(memory), derived=derived)


def _number(path: str, prefix: str = "") -> int | None:
    """The first number in the line of a kernel file that starts with `prefix`; None where there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    words = next((line.removeprefix(prefix).split() for line in lines if line.startswith(prefix)), [])
    return int(words[0]) if words and words[0].isdigit() else None


def host_memory() -> tuple[tuple[str, int], ...]:
    """Main memory as the system sees it now, in bytes: in all, or the container's share of it, and available."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = (_number("/proc/meminfo", "MemAvailable:") or physical // 2048) * 1024
    limit = _number("/sys/fs/cgroup/memory.max")
    used = _number("/sys/fs/cgroup/memory.current")
    if limit is not None and used is not None:
        physical, available = min(physical, limit), min(available, max(0, limit - used))
    return ("machine: memory", physical), ("machine: available", available)
