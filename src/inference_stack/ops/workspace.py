"""The step's planned workspace: one buffer that every op takes its output from, at addresses that repeat step after step.

A range is sized by its leading dimension's capacity, not its current length, so addresses depend on the program alone. It is
given back when the last tensor over it dies, views included. This file knows sizes and lifetimes; it knows no op.
"""

from __future__ import annotations

import ctypes
import weakref
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, Literal

import torch
from torch import Tensor

from inference_stack.ops.host_memory import host_bytes

ALIGNMENT: Final = 64
Rows = Literal["tokens", "samples"]


class WorkspaceOverflow(RuntimeError):
    """A step needs more workspace than was measured, or a leading dimension exceeds its declared capacity."""


class FirstFit:
    """Ranges on a line, lowest free place first: the same takes and releases always give the same places."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.peak = 0

    def take(self, nbytes: int) -> int:
        """The start of a free range of `nbytes`, aligned."""
        size = -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
        start, index = 0, 0
        for taken, end in zip(self._starts, self._ends, strict=True):
            if taken - start >= size:
                break
            start = end
            index += 1
        self._starts.insert(index, start)
        self._ends.insert(index, start + size)
        self.peak = max(self.peak, start + size)
        return start

    def release(self, start: int) -> None:
        """Gives back the range that begins at `start`."""
        index = bisect_left(self._starts, start)
        del self._starts[index], self._ends[index]


@dataclass(frozen=True, slots=True)
class _Live:
    """One range in use: its place in the buffer, what its leading dimension counts, and the watch on its owner."""

    start: int
    rows: Rows
    watch: weakref.ref[Any]


class Workspace:
    """Outputs of one step. It begins by measuring; `seal` then allocates the buffer once, and overflow becomes an error.

    While measuring, tensors have memory of their own and only places are planned. Because a range has the size of its
    capacity, a step of one token and one sample measures as much as a full one. `max_tokens` bounds T, `max_samples` S.
    Not for use by several threads at once. Where it is not `planned`, as on accelerators, torch's allocator does all this: it
    gives memory back in the order of the device's work, and a graph keeps what was taken while it was recorded.
    """

    def __init__(
        self, *, max_tokens: int, max_samples: int, device: torch.device | str = "cpu", planned: bool = True
    ) -> None:
        self.device = torch.device(device)
        self._planned = planned
        self._capacity: dict[Rows, int] = {"tokens": max_tokens, "samples": max_samples}
        self._places = FirstFit()
        self._live: dict[int, _Live] = {}
        self._buffer: Tensor | None = None
        self._base = 0
        self._limit = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer, or the measure so far."""
        return self._buffer.nbytes if self._buffer is not None else self._places.peak

    @property
    def live(self) -> int:
        """Ranges now in use; 0 between steps unless a caller keeps an output."""
        return len(self._live)

    @property
    def sealed(self) -> bool:
        """Whether the buffer is allocated."""
        return self._buffer is not None

    def seal(self) -> None:
        """Ends measuring and allocates the buffer, where it is planned. Raises RuntimeError when sealed already, or while outputs
        are alive."""
        if not self._planned:
            return
        if self._buffer is not None:
            raise RuntimeError("the workspace is sealed already")
        if self._live:
            raise RuntimeError(f"{len(self._live)} outputs of the measuring step are still referenced")
        self._limit = self._places.peak
        self._buffer = host_bytes(self._limit)
        self._base = -(-self._buffer.data_ptr() // ALIGNMENT) * ALIGNMENT

    def take(self, shape: Sequence[int], dtype: torch.dtype, rows: Rows = "tokens") -> Tensor:
        """An uninitialised tensor; `rows` says what its leading dimension counts. Raises WorkspaceOverflow."""
        capacity = self._capacity[rows]
        if shape[0] > capacity:
            raise WorkspaceOverflow(f"a step has {shape[0]} {rows}, but the workspace is planned for {capacity}")
        if 0 in shape or not self._planned:
            return torch.empty(*shape, dtype=dtype, device=self.device)
        reserved = capacity * prod(shape[1:]) * dtype.itemsize
        start = self._places.take(reserved)
        if self._buffer is not None and start + reserved > self._limit:
            self._places.release(start)
            raise WorkspaceOverflow(
                f"a step needs {start + reserved} bytes of workspace, but {self._limit} are planned"
            )
        return self._wrap(start, prod(shape) * dtype.itemsize, dtype, rows).view(*shape)

    def take_like(self, x: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """As `take`, with the leading dimension counting what `x`'s does."""
        return self.take(shape, dtype, self.rows_of(x))

    def rows_of(self, x: Tensor) -> Rows:
        """What the leading dimension of `x` counts; tokens, when it is not a tensor of this workspace."""
        live = self._live.get(x.untyped_storage().data_ptr())
        return live.rows if live is not None else "tokens"

    def _wrap(self, start: int, nbytes: int, dtype: torch.dtype, rows: Rows) -> Tensor:
        # Every range has a storage of its own, whose owner dies with the last tensor over it: views keep it alive.
        owner = self._owner(start, nbytes)
        flat = torch.frombuffer(owner, dtype=dtype)
        address = flat.data_ptr()
        self._live[address] = _Live(start, rows, weakref.ref(owner, self._returner(address)))
        return flat

    def _returner(self, address: int) -> Callable[[object], None]:
        def give_back(_: object) -> None:
            self._places.release(self._live.pop(address).start)

        return give_back

    def _owner(self, start: int, nbytes: int) -> Any:
        kind = ctypes.c_ubyte * nbytes
        return kind() if self._buffer is None else kind.from_address(self._base + start)
