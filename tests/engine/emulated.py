"""An accelerator on the CPU that is as late as a real one may be, and catches who reads it too early."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from inference_stack.engine.accelerator import Accelerator
from inference_stack.engine.staging import Staging
from inference_stack.engine.streams import HostStreams

POISON = 0x5A
HOST_READS = ("item", "tolist", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__", "numpy")


class LateStaging(Staging):
    """Until they are sent, uploads hold nonsense, as memory on a card would."""

    def begin(self) -> None:
        super().begin()
        self._device[self._turn].fill_(POISON)


class ReadsTheDevice(AssertionError):
    """The host waited for the device in the middle of a step."""


def emulated(free: int = 64 << 20) -> Accelerator:
    """An accelerator with `free` bytes of memory."""
    device = Accelerator(HostStreams(free))
    device.staging = LateStaging(device.streams, 1 << 16, 4)
    return device


@contextmanager
def no_reads() -> Iterator[None]:
    """Inside, whatever brings a tensor's values to the host raises `ReadsTheDevice`."""

    def refuse(name: str) -> Any:
        def read(*_: object, **__: object) -> Any:
            raise ReadsTheDevice(f"Tensor.{name} on the step's path")

        return read

    patches = [patch.object(torch.Tensor, name, refuse(name)) for name in HOST_READS]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()
