"""The few things that differ between a GPU's queue of work and a CPU that does everything at once.

Streams       page-locked memory, points in the queue, recorded work
CudaStreams   torch's current CUDA stream (ROCm's where torch is built for it)
HostStreams   the same on a CPU: nothing overlaps, so that what is built on it can be tested without a card
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import torch
from torch import Tensor

Work = Callable[[], tuple[Tensor, ...]]
"""Work for a device, and the tensors that hold its results."""


def installed(package: str) -> str:
    """A package's version; empty where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


class Point(Protocol):
    """A point in the queue of work."""

    def wait(self) -> None:
        """Block the host until the device has passed it."""
        ...

    def since(self, earlier: Point) -> float | None:
        """Seconds that the device took from `earlier` to here, both passed; None where it keeps no time."""
        ...


class Graph(Protocol):
    """Work that was recorded once."""

    def replay(self) -> None:
        """Queue it again, over the same memory."""
        ...


class Streams(Protocol):
    """A device's queue."""

    device: torch.device

    def isa(self) -> str:
        """What compiled kernels depend on: architecture and libraries."""
        ...

    def memory(self) -> tuple[int, int]:
        """Bytes free and in all."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Host memory that the device copies from and to by itself."""
        ...

    def point(self) -> Point:
        """Here, behind all that is queued."""
        ...

    def recorded_bytes(self) -> int:
        """Memory of all recordings."""
        ...

    def record(self, work: Work) -> tuple[Graph, tuple[Tensor, ...]]:
        """Record what `work` queues; and the tensors that it returned, which every replay writes again. What a replay wrote stays
        until another recording is replayed. Raises RuntimeError for what cannot be recorded, or finds no memory."""
        ...


class CudaStreams:
    """The current stream of a CUDA device, and one pool of memory that all its graphs share. Products are summed in fp32."""

    def __init__(self, device: torch.device) -> None:
        products = torch.backends.cuda.matmul
        products.allow_bf16_reduced_precision_reduction = products.allow_fp16_reduced_precision_reduction = False
        self.device = device
        self._pool: Any = None
        self._recorded = 0

    def isa(self) -> str:
        """Such as "sm_90 NVIDIA H200, cuda 13.0, triton 3.6.0"."""
        major, minor = torch.cuda.get_device_capability(self.device)
        name = torch.cuda.get_device_name(self.device)
        toolkit = f"hip {torch.version.hip}" if torch.version.hip else f"cuda {torch.version.cuda}"
        return f"sm_{major}{minor} {name}, {toolkit}, triton {installed('triton')}"

    def memory(self) -> tuple[int, int]:
        """Bytes that neither this process nor another one has, and all of the card."""
        free, total = torch.cuda.mem_get_info(self.device)
        cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return free + cached, total

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Page-locked memory, from torch's cache of it."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def point(self) -> Point:
        """A timed event."""
        return CudaPoint(torch.cuda.current_stream(self.device))

    def record(self, work: Work) -> tuple[Graph, tuple[Tensor, ...]]:
        """A CUDA graph. Nothing of it runs yet. All graphs share one memory, since they never run at the same time: what it
        returned is looked at, not kept."""
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        taken = torch.cuda.memory_reserved(self.device)
        # Other threads may ask the device for memory meanwhile; only this one must not.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            made = work()
        self._recorded += max(0, torch.cuda.memory_reserved(self.device) - taken)
        return graph, tuple(_looked_at(one) for one in made)

    def recorded_bytes(self) -> int:
        """As torch's allocator counts them."""
        return self._recorded


def bytes_at(address: int, nbytes: int, device: torch.device) -> Tensor:
    """Device memory that is somebody else's, uint8. Raises RuntimeError when torch would copy it."""
    flat = torch.as_tensor(_Bytes(address, nbytes), device=device)
    if flat.data_ptr() != address:
        raise RuntimeError("torch copied device memory that it was to look at")
    return flat


class _Bytes:
    """Device memory as an object that torch wraps without a copy."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3}


def _looked_at(tensor: Tensor) -> Tensor:
    """The same memory, without keeping it from others."""
    if not tensor.is_contiguous() or not tensor.numel():
        return tensor
    return bytes_at(tensor.data_ptr(), tensor.nbytes, tensor.device).view(tensor.dtype).view(tensor.shape)


class CudaPoint:
    """A CUDA event."""

    __slots__ = ("_event",)

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record(stream)

    def wait(self) -> None:
        """Block until the event has happened."""
        self._event.synchronize()

    def since(self, earlier: Point) -> float | None:
        """Between the two events, as the device's clock has it."""
        assert isinstance(earlier, CudaPoint)
        return float(earlier._event.elapsed_time(self._event)) / 1000


class HostStreams:
    """A queue that is always empty. `free` bytes are all it admits to having."""

    def __init__(self, free: int) -> None:
        self.device = torch.device("cpu")
        self._free = free

    def isa(self) -> str:
        """What torch's kernels choose their code by."""
        return f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}"

    def memory(self) -> tuple[int, int]:
        """As it was given."""
        return self._free, self._free

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Ordinary memory."""
        return torch.empty(shape, dtype=dtype)

    def point(self) -> Point:
        """Passed already."""
        return HostPoint()

    def record(self, work: Work) -> tuple[Graph, tuple[Tensor, ...]]:
        """The work itself, done once; its results are spoilt, since a device's recording has none."""
        made = work()
        for place in made:
            place.fill_(torch.nan)
        return HostGraph(work, made), made

    def recorded_bytes(self) -> int:
        """Nothing that lasts."""
        return 0


class HostPoint:
    """A point that was passed when it was made."""

    def wait(self) -> None:
        """Nothing to wait for."""

    def since(self, earlier: Point) -> float | None:
        """Unknown: the host's clock tells."""
        return None


class HostGraph:
    """Recorded work on a CPU: done again at every replay, and its results put where the first ones lie."""

    def __init__(self, work: Work, made: tuple[Tensor, ...]) -> None:
        self._work = work
        self._made = made

    def replay(self) -> None:
        """Do the work."""
        for place, result in zip(self._made, self._work(), strict=True):
            place.copy_(result)
