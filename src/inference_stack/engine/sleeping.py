"""Sleep: a model's weights leave the device and come back to the same addresses, so that recorded steps stay valid.

    adopt  every weight moves into one extent of addresses         (once, before steps are recorded)
    sleep  extent ─▶ page-locked host memory; the memory behind the addresses is given back
    wake   memory is put behind the addresses again, and the copy goes back, piece by piece

Knows weights as bytes. Whether requests are running is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from inference_stack.core.errors import SERVER_ERROR, ErrorInfo, InferenceError, invalid
from inference_stack.engine.cuda_driver import CudaDriver, Driver, DriverError
from inference_stack.engine.extent import ALIGNMENT, PIECE_BYTES, Extent
from inference_stack.engine.streams import bytes_at
from inference_stack.models.api import LoadedModel
from inference_stack.models.parameters import parameters

TRIM_BYTES: Final = 1 << 30
"""Weights that are moved before memory that this freed is given back to the device: at most that much is taken twice."""


class Memory(Protocol):
    """A device's memory, its driver, and copies between it and the host."""

    device: torch.device
    driver: Driver

    def tensor(self, address: int, nbytes: int) -> Tensor:
        """The bytes at a device address, uint8. They must be mapped."""
        ...

    def pinned(self, nbytes: int) -> Tensor:
        """Page-locked host memory, uint8. Raises RuntimeError or MemoryError where there is too little."""
        ...

    def copy(self, out: Tensor, source: Tensor) -> None:
        """Queue a copy, beside what is computed."""
        ...

    def settle(self) -> None:
        """Wait until all that is queued on the device, copies and work, is done."""
        ...

    def trim(self) -> None:
        """Give memory that no tensor uses back to the device."""
        ...


@dataclass(slots=True)
class _Storage:
    """Memory that some tensors share."""

    nbytes: int
    tensors: list[Tensor]


class Sleeper:
    """One model's weights in an extent of their own. Made before steps are recorded: weights change their addresses here.

    `keep_copy`: the host copy stays after waking, since weights do not change, so that the next sleep copies nothing. Raises
    `InferenceError` when the device has no room for moving them; the model is whole then, and cannot sleep.
    """

    def __init__(
        self, loaded: LoadedModel, memory: Memory, keep_copy: bool = True, piece_bytes: int = PIECE_BYTES
    ) -> None:
        self._memory = memory
        self._keep_copy = keep_copy
        self._copies: list[Tensor] = []
        self.asleep = False
        storages = _storages(parameters(loaded), memory.device)
        try:
            capacity = sum(-(-one.nbytes // ALIGNMENT) * ALIGNMENT for one in storages)
            self._extent = Extent(memory.driver, capacity, piece_bytes)
            self._adopt(storages)
        except (DriverError, torch.OutOfMemoryError) as error:
            raise _failed("The weights cannot be moved to where they could sleep", memory.device, error) from error

    @property
    def nbytes(self) -> int:
        """Device memory that sleep gives back."""
        return self._extent.nbytes

    def sleep(self) -> int:
        """Take the weights off the device; the bytes that this gave back, 0 when they are asleep already.

        No step may be queued or running, and none may come before `wake`. Raises `InferenceError` when the host has no room for
        them; they stay where they are then.
        """
        if self.asleep:
            return 0
        self._memory.settle()
        if not self._copies:
            self._copy_out()
        self.asleep = True  # whatever comes now: weights may be missing
        try:
            return self._extent.unmap()
        except DriverError as error:
            raise _failed("The memory of sleeping weights cannot be given back", self._memory.device, error) from error

    def wake(self) -> None:
        """Bring the weights back to where they were. Does nothing when they are awake.

        Raises `InferenceError` when the device has too little memory, or fails; they sleep on then.
        """
        if not self.asleep:
            return
        try:
            for copy in self._copies[len(self._extent.pieces()) :]:
                self._memory.copy(self._memory.tensor(*self._piece()), copy)
            self._memory.settle()
        except (DriverError, RuntimeError) as error:
            self._memory.settle()  # before memory goes that a copy still writes
            self._extent.unmap()
            raise _failed("The weights cannot be woken", self._memory.device, error) from error
        self.asleep = False
        if not self._keep_copy:
            self._copies.clear()

    def close(self) -> None:
        """Give everything back. The model's weights are gone: for the end of a model."""
        self._memory.settle()
        self._copies.clear()
        self._extent.close()

    def _piece(self) -> tuple[int, int]:
        """Memory for the next piece; the device is asked again when torch has given back what it only keeps."""
        try:
            return self._extent.map_next()
        except DriverError as error:
            if not error.out_of_memory:
                raise
        self._memory.trim()
        return self._extent.map_next()

    def _adopt(self, storages: list[_Storage]) -> None:
        """Move weights one after the other, so that they are never on the device twice."""
        self._memory.settle()
        moved = 0
        for storage in storages:
            place = self._memory.tensor(self._extent.take(storage.nbytes), storage.nbytes)
            place.copy_(_bytes_of(storage.tensors[0]))
            _move(storage.tensors, place)
            moved += storage.nbytes
            if moved >= TRIM_BYTES:
                self._memory.trim()
                moved = 0
        self._memory.settle()
        self._memory.trim()

    def _copy_out(self) -> None:
        copies: list[Tensor] = []
        try:
            for address, size in self._extent.pieces():
                copies.append(self._memory.pinned(size))
                self._memory.copy(copies[-1], self._memory.tensor(address, size))
        except (RuntimeError, MemoryError) as error:
            raise _failed("The host has no room for sleeping weights", torch.device("cpu"), error) from error
        finally:
            self._memory.settle()
        self._copies = copies


def sleeper_for(loaded: LoadedModel, device: torch.device) -> Sleeper:
    """What lets this model sleep. Raises `InferenceError` where its device cannot do that, and as `Sleeper`."""
    if device.type != "cuda":
        raise invalid(f"Weights on {device} cannot sleep; those on an NVIDIA GPU can.", param="engine.device")
    try:
        return Sleeper(loaded, CudaMemory(device))
    except (OSError, AttributeError) as error:
        raise invalid(f"Weights on {device} cannot sleep: NVIDIA's driver is needed ({error}).") from error


class CudaMemory:
    """A `Memory`: one CUDA device, its copies on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.device = torch.empty(0, device=device).device
        self.driver: Driver = CudaDriver(self.device.index)
        self._stream = torch.cuda.Stream(self.device)

    def tensor(self, address: int, nbytes: int) -> Tensor:
        """See `Memory`."""
        return bytes_at(address, nbytes, self.device)

    def pinned(self, nbytes: int) -> Tensor:
        """See `Memory`."""
        with torch.cuda.device(self.device):
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def copy(self, out: Tensor, source: Tensor) -> None:
        """See `Memory`."""
        with torch.cuda.stream(self._stream):
            out.copy_(source, non_blocking=True)

    def settle(self) -> None:
        """See `Memory`."""
        torch.cuda.synchronize(self.device)

    def trim(self) -> None:
        """See `Memory`."""
        with torch.cuda.device(self.device):
            torch.cuda.empty_cache()


def _storages(tensors: Iterable[Tensor], device: torch.device) -> list[_Storage]:
    found: dict[int, _Storage] = {}
    for tensor in tensors:
        memory = tensor.untyped_storage()
        if tensor.device == device and memory.nbytes():
            storage = found.setdefault(memory.data_ptr(), _Storage(memory.nbytes(), []))
            storage.tensors.insert(0 if memory.nbytes() > storage.nbytes else len(storage.tensors), tensor)
            storage.nbytes = max(storage.nbytes, memory.nbytes())
    return list(found.values())


def _bytes_of(tensor: Tensor) -> Tensor:
    """All of the memory that a tensor is in, uint8."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _move(tensors: Iterable[Tensor], place: Tensor) -> None:
    """Let tensors that shared one memory share another, each at its place in it."""
    with torch.inference_mode():  # which may change tensors that were made there, as well as others
        for tensor in tensors:
            shape, stride, start = tensor.shape, tensor.stride(), tensor.storage_offset()
            tensor.set_(place.untyped_storage(), start, shape, stride)


def _failed(what: str, device: torch.device, error: BaseException) -> InferenceError:
    short = isinstance(error, torch.OutOfMemoryError | MemoryError) or getattr(error, "out_of_memory", False)
    code = "out_of_memory" if short else "device_error"
    return InferenceError(ErrorInfo(message=f"{what} ({device}): {error}", type=SERVER_ERROR, code=code, status=500))
