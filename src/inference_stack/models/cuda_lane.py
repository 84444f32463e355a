"""The way to a GPU's memory: copies from pinned buffers on a stream of their own, beside the one that computes.

Weights come from the side stream's pool. Whoever computes with one waits for that stream and is recorded as its user, so
that memory freed after being laid out anew is not written again while a kernel still reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inference_stack.core.errors import unsupported_model
from inference_stack.models.placing import Event, HostPlacer, Placer, StagedPlacer


def placer_for(device: torch.device | str) -> Placer:
    """What brings weights from files to a device. Raises as `usable`."""
    device = usable(device)
    return HostPlacer() if device.type == "cpu" else StagedPlacer(CudaLane(device))


def usable(device: torch.device | str) -> torch.device:
    """The device, with its number. Raises `unsupported_model` for a kind that cannot be used, or one that is not here."""
    device = torch.device(device)
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise unsupported_model(f"Weights cannot be brought to the device {str(device)!r}; use cpu or cuda.")
    if not torch.cuda.is_available():
        raise unsupported_model(f"Weights cannot be brought to {str(device)!r}: torch finds no usable GPU here.")
    return torch.empty(0, device=device).device


class CudaLane:
    """A `Lane` to a device with a number."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(self.device)

    def enter_thread(self) -> None:
        """The current device is a property of the thread."""
        torch.cuda.set_device(self.device)

    def pinned(self, nbytes: int) -> Tensor:
        """See `Lane`."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Lane`."""
        with torch.cuda.stream(self._stream):
            return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def copy(self, out: Tensor, host: Tensor) -> Event:
        """See `Lane`. Of another type it goes to the device as it is: torch would convert it on the host, and wait."""
        with torch.cuda.stream(self._stream):
            if host.dtype == out.dtype:
                out.copy_(host, non_blocking=True)
            else:
                out.copy_(host.to(self.device, non_blocking=True))
            event = torch.cuda.Event(blocking=True)
            event.record(self._stream)
        return event

    def hand_over(self, tensors: Sequence[Tensor]) -> None:
        """See `Lane`."""
        compute = torch.cuda.current_stream(self.device)
        compute.wait_stream(self._stream)
        for tensor in tensors:
            tensor.record_stream(compute)

    def close(self) -> None:
        """See `Lane`."""
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        empty_host_cache = getattr(torch.accelerator, "empty_host_cache", None)  # newer than torch 2.11
        if empty_host_cache is not None:
            empty_host_cache()
