"""The `Device` seam for CPUs: memory, ordered execution, identity.

On a CPU every queued operation has finished when the call returns, so nothing is gathered and nothing is waited for.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inference_stack.core.errors import SERVER_ERROR, ErrorInfo, InferenceError
from inference_stack.ops.host_memory import host_bytes


class _Here:
    """Results that are on the host already."""

    __slots__ = ("_arrays",)
    seconds = None

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self._arrays = arrays

    def wait(self) -> list[np.ndarray]:
        return self._arrays


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_bytes(path: str) -> int | None:
    """A number of bytes from a kernel file; None when there is no such file or no limit in it."""
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _physical(name: str) -> int:
    return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")


def _available() -> int:
    """The kernel's estimate of memory that can be taken without swapping, in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return _physical("SC_PHYS_PAGES") // 2
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _reclaimable() -> int:
    """Bytes of the container's page cache that the kernel drops when memory is asked for, such as files read long ago."""
    try:
        lines = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)


class CpuDevice:
    """A set of CPU cores and main memory."""

    shares_memory = True

    def __init__(self, threads: int = 0) -> None:
        self.name = "cpu"
        self.threads = threads or usable_cores()
        self.torch_device = torch.device("cpu")
        torch.set_num_threads(self.threads)

    def total_bytes(self) -> int:
        """Main memory, or the container's share of it, in bytes."""
        limit = _read_bytes("/sys/fs/cgroup/memory.max")
        return min(_physical("SC_PHYS_PAGES"), limit or sys.maxsize)

    def free_bytes(self) -> int:
        """Memory that can be taken without swapping, in bytes."""
        limit = _read_bytes("/sys/fs/cgroup/memory.max")
        used = _read_bytes("/sys/fs/cgroup/memory.current")
        return min(_available(), limit - used + _reclaimable() if limit and used else sys.maxsize)

    def allocate(self, nbytes: int) -> Tensor:
        """Zeroed uint8 [nbytes], in huge pages where the system has them. All is written once, so that a lack of memory shows now
        and not mid-stream.

        Raises `InferenceError` when it does not fit.
        """
        if nbytes > self.free_bytes():
            raise InferenceError(
                ErrorInfo(
                    message=f"{nbytes / 2**20:.0f} MiB do not fit into the {self.free_bytes() / 2**20:.0f} MiB of free memory; "
                    "lower --kv-memory",
                    type=SERVER_ERROR,
                    code="out_of_memory",
                    status=500,
                )
            )
        return host_bytes(nbytes).zero_()

    def peak_bytes(self) -> int:
        """Nothing: the workspace is measured, and made once."""
        return 0

    def settle(self) -> None:
        """Give back what loading took from the system and no longer uses: the C library keeps freed memory otherwise."""
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)

    def begin(self) -> None:
        """Nothing to do."""

    def upload(self, column: np.ndarray) -> Tensor:
        """A host array as a tensor; shares memory, so the array must not change while a step uses it."""
        return torch.from_numpy(column)

    def send(self) -> None:
        """Nothing to do."""

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor itself: its memory is the array's."""
        return tensor

    def fetch(self, tensors: Sequence[Tensor]) -> _Here:
        """The tensors as arrays that share their memory."""
        return _Here([tensor.numpy() for tensor in tensors])

    def isa(self) -> str:
        """Machine, vector extension and thread count: what torch's kernels choose their code by."""
        return f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}-{self.threads}t"
