"""What a step sends to the device and gets back: one copy there, gathered in page-locked memory, and results without waiting.

    begin ─▶ put, put, put ─▶ send ─▶ … kernels … ─▶ Fetched ┊ wait

Several steps are under way at once, so buffers take turns; one is written again only when its step has passed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from inference_stack.engine.streams import Point, Streams

ALIGNMENT = 16
TYPES = {
    np.dtype(np.int64): torch.int64,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.bool_): torch.bool,
}


class Staging:
    """Uploads of one step at a time, into one of `turns` buffers of `nbytes`. What does not fit goes by a copy of its own."""

    def __init__(self, streams: Streams, nbytes: int, turns: int) -> None:
        self._streams = streams
        self._host = [streams.pinned((nbytes,), torch.uint8) for _ in range(turns)]
        self._bytes = [host.numpy() for host in self._host]
        self._device = [torch.empty(nbytes, dtype=torch.uint8, device=streams.device) for _ in range(turns)]
        self._passed: list[Point | None] = [None] * turns
        self._turn = 0
        self._used = self._sent = 0
        self.copies = 0

    @property
    def nbytes(self) -> int:
        """Device bytes of the buffers."""
        return sum(buffer.nbytes for buffer in self._device)

    def begin(self) -> None:
        """Take the next buffer, whose step was launched `turns` steps ago: it has passed unless the device lags far behind."""
        self._turn = (self._turn + 1) % len(self._host)
        passed = self._passed[self._turn]
        if passed is not None:
            passed.wait()
        self._used = self._sent = 0

    def put(self, column: np.ndarray) -> Tensor:
        """The column's tensor on the device; its values come with `send`."""
        start = -(-self._used // ALIGNMENT) * ALIGNMENT
        stop = start + column.nbytes
        if stop > len(self._bytes[self._turn]):
            return self._alone(column)
        if column.nbytes:
            self._bytes[self._turn][start:stop] = np.ascontiguousarray(column).reshape(-1).view(np.uint8)
        self._used = stop
        return self._device[self._turn][start:stop].view(TYPES[column.dtype]).view(column.shape)

    def send(self) -> None:
        """Copy what was put since the last time."""
        if self._used > self._sent:
            part = slice(self._sent, self._used)
            self._device[self._turn][part].copy_(self._host[self._turn][part], non_blocking=True)
            self._sent = self._used
            self.copies += 1

    def end(self, point: Point) -> None:
        """The step that used this buffer is over at `point`."""
        self._passed[self._turn] = point

    def _alone(self, column: np.ndarray) -> Tensor:
        host = self._streams.pinned(column.shape, TYPES[column.dtype])
        host.numpy()[...] = column
        self.copies += 1
        return host.to(self._streams.device, non_blocking=True)


class Fetched:
    """Results on their way into page-locked memory. `began` is where the step's work begins in the queue; None: it has no time,
    since it did more than a step does."""

    def __init__(self, streams: Streams, tensors: Sequence[Tensor], began: Point | None) -> None:
        self._host = [streams.pinned(tuple(tensor.shape), tensor.dtype) for tensor in tensors]
        for place, tensor in zip(self._host, tensors, strict=True):
            place.copy_(tensor, non_blocking=True)
        self._began = began
        self.point = streams.point()
        self.seconds: float | None = None

    def wait(self) -> list[np.ndarray]:
        """The results, once they are there."""
        self.point.wait()
        self.seconds = 0.0 if self._began is None else self.point.since(self._began)
        return [place.numpy() for place in self._host]
