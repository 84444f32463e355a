"""Brings weights from files to the memory of the device that computes with them.

    host memory   a weight is read straight to its place
    a device      file ranges ─ parallel reads ─▶ ring of pinned buffers ─ side stream ─▶ the weight's rows, converted there

No more of a model is on the host than the ring and the weights that are decoded there at the moment. What differs from device
to device is a `Lane`; here are the order of things and their bounds. Knows bytes and types; it knows no model.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Final, Protocol

import torch
from torch import Tensor

from inference_stack.artifacts.ranges import RangeReader
from inference_stack.models.stored import Extent, Source

BUFFER_BYTES: Final = 8 << 20
BUFFERS: Final = 24
READERS: Final = 16
"""The ring's buffers and the threads that fill them: more buffers than readers, so that none waits for a copy of its own."""

Fill = Callable[[int, Tensor], None]
"""Called with a place in the stored bytes and the uint8 tensor to fill from there; by several threads at once."""


class Placer(Protocol):
    """Makes weights on one `device`. Every method may be called by several threads at once, `close` at the end by one."""

    device: torch.device

    def enter_thread(self) -> None:
        """Called first in every thread that makes weights."""
        ...

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory for a weight, uninitialised."""
        ...

    def read(self, source: Source, name: str, out: Tensor) -> None:
        """Fill `out`, contiguous and of this device, with a dense tensor, converting to its type."""
        ...

    def put(self, host: Tensor) -> Tensor:
        """A tensor of main memory, on the device. Do not write to `host` afterwards."""
        ...

    def ready(self, *tensors: Tensor) -> None:
        """What the calling thread computes from now on sees these tensors filled, and may free them."""
        ...

    def close(self) -> None:
        """Wait for everything and give the means back; weights stay."""
        ...


class HostPlacer:
    """Main memory: weights are read where they stay."""

    device = torch.device("cpu")

    def enter_thread(self) -> None:
        """Nothing to do."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Placer`."""
        return torch.empty(tuple(shape), dtype=dtype)

    def read(self, source: Source, name: str, out: Tensor) -> None:
        """See `Placer`."""
        source.read(name, out)

    def put(self, host: Tensor) -> Tensor:
        """The tensor itself."""
        return host

    def ready(self, *tensors: Tensor) -> None:
        """They are."""

    def close(self) -> None:
        """Nothing to give back."""


class Event(Protocol):
    """A point in a lane's queue."""

    def query(self) -> bool:
        """Whether everything before it has happened."""
        ...

    def synchronize(self) -> None:
        """Wait until it has."""
        ...


class Lane(Protocol):
    """The way from main memory to a device: a queue of copies beside the one that computes. For several threads at once."""

    device: torch.device

    def enter_thread(self) -> None:
        """Called first in every thread that uses the lane."""
        ...

    def pinned(self, nbytes: int) -> Tensor:
        """Main memory that the device can read by itself, uint8 [nbytes]."""
        ...

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Device memory for what the lane is to write."""
        ...

    def copy(self, out: Tensor, host: Tensor) -> Event:
        """Queue filling `out` from pinned memory, converted on the device. `host` must not change until the event."""
        ...

    def hand_over(self, tensors: Sequence[Tensor]) -> None:
        """What the calling thread queues for computing from now on comes after all copies queued so far."""
        ...

    def close(self) -> None:
        """Wait for everything queued, and give back memory that nothing uses."""
        ...


class Ring:
    """At most `count` buffers, made when first needed, each taken again only when its copy has left it."""

    def __init__(self, make: Callable[[], Tensor], count: int) -> None:
        self._make, self._count, self._made = make, count, 0
        self._free: deque[tuple[Tensor, Event | None]] = deque()
        self._changed = threading.Condition()

    def take(self) -> Tensor:
        """A buffer that nobody reads or writes. Waits for one."""
        with self._changed:
            while not self._free and self._made == self._count:
                self._changed.wait()
            found = None
            if self._made == self._count or (self._free and _passed(self._free[0][1])):
                found = self._free.popleft()
            else:
                self._made += 1
        return self._grown() if found is None else self._waited(*found)

    def give(self, buffer: Tensor, event: Event | None = None) -> None:
        """Give a buffer back, whose content is used until `event`."""
        with self._changed:
            self._free.append((buffer, event))
            self._changed.notify()

    def _grown(self) -> Tensor:
        try:
            return self._make()
        except BaseException:
            with self._changed:
                self._made -= 1
                self._changed.notify()
            raise

    def _waited(self, buffer: Tensor, event: Event | None) -> Tensor:
        try:
            if event is not None:
                event.synchronize()
        except BaseException:
            self.give(buffer)  # others wait for it, and will see the same error
            raise
        return buffer


def _passed(event: Event | None) -> bool:
    return event is None or event.query()


class StagedPlacer:
    """A device behind a `Lane`. Long tensors are read by several threads in pieces of a buffer's size."""

    def __init__(self, lane: Lane, readers: int = 0, buffers: int = BUFFERS, buffer_bytes: int = BUFFER_BYTES) -> None:
        if buffers < 1 or buffer_bytes < 8 or buffer_bytes % 8:
            raise ValueError(f"a ring of {buffers} buffers of {buffer_bytes} bytes cannot hold whole numbers")
        self.device = lane.device
        self._lane, self._buffer_bytes = lane, buffer_bytes
        self._ring = Ring(partial(lane.pinned, buffer_bytes), buffers)
        self._files = RangeReader()
        threads = readers or min(READERS, len(os.sched_getaffinity(0)))
        self._readers = ThreadPoolExecutor(threads, "weights-read", initializer=lane.enter_thread)

    def enter_thread(self) -> None:
        """See `Placer`."""
        self._lane.enter_thread()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Placer`."""
        return self._lane.empty(shape, dtype)

    def read(self, source: Source, name: str, out: Tensor) -> None:
        """See `Placer`. Ranges of files are read in parallel; what the source has to decode is decoded in main memory first."""
        extent = source.extent(name)
        if extent is not None:
            return self._stream(partial(self._from_file, extent), extent.dtype, out)
        layout = source.layout(name)
        host = torch.empty(out.shape, dtype=(layout.dtype if layout else None) or out.dtype)
        source.read(name, host)
        return self._from_host(host, out)

    def put(self, host: Tensor) -> Tensor:
        """See `Placer`."""
        out = self._lane.empty(host.shape, host.dtype)
        self._from_host(host.contiguous(), out)
        return out

    def ready(self, *tensors: Tensor) -> None:
        """See `Placer`."""
        self._lane.hand_over(tensors)

    def close(self) -> None:
        """See `Placer`."""
        try:
            self._readers.shutdown(cancel_futures=True)
            self._ring = Ring(partial(self._lane.pinned, self._buffer_bytes), 1)
            self._lane.close()
        finally:
            self._files.close()

    def _from_file(self, extent: Extent, start: int, buffer: Tensor) -> None:
        self._files.read(extent.path, extent.offset + start, buffer.numpy().data)

    def _from_host(self, host: Tensor, out: Tensor) -> None:
        stored = host.view(-1).view(torch.uint8)

        def fill(start: int, buffer: Tensor) -> None:
            buffer.copy_(stored[start : start + len(buffer)])

        self._stream(fill, host.dtype, out)

    def _stream(self, fill: Fill, dtype: torch.dtype, out: Tensor) -> None:
        """Bring stored elements of `dtype` to `out`. At the end all of them are queued, and nothing reads the origin any more."""
        flat, step = out.view(-1), self._buffer_bytes // dtype.itemsize
        if len(flat) <= step:
            return self._piece(fill, dtype, flat, 0)
        starts = range(0, len(flat), step)
        return _all(
            [self._readers.submit(self._piece, fill, dtype, flat[at : at + step], at * dtype.itemsize) for at in starts]
        )

    def _piece(self, fill: Fill, dtype: torch.dtype, out: Tensor, start: int) -> None:
        if not len(out):
            return
        buffer, event = self._ring.take(), None
        try:
            used = buffer[: len(out) * dtype.itemsize]
            fill(start, used)
            event = self._lane.copy(out, used.view(dtype))
        finally:
            self._ring.give(buffer, event)


def _all(jobs: Sequence[Future[None]]) -> None:
    """Wait for all; when one fails, those that have not begun never do, and its error is raised after the others ended."""
    try:
        for job in jobs:
            job.result()
    except BaseException:
        for job in jobs:
            job.cancel()
        wait(jobs)
        raise
