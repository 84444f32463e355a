"""An accelerator on the CPU that is as late as a real one may be, and catches who reads it too early."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inference_stack.engine.accelerator import Accelerator
from inference_stack.engine.staging import Staging
from inference_stack.engine.streams import HostStreams

POISON = 0x5A
HOST_READS = ("item", "tolist", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__", "numpy")
WAITED = {
    "_local_scalar_dense", "equal", "masked_select", "nonzero", "nonzero_static", "unique_dim", "_unique", "_unique2",
    "unique_consecutive",
}  # fmt: skip
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}


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


class _Guard(TorchDispatchMode):
    """Refuses ops whose results, or whose sizes, the host has to wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        mask = name in INDEXED and any(one is not None and one.dtype == torch.bool for one in args[1])
        counted = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in WAITED or mask or counted:
            raise ReadsTheDevice(f"{name} on the step's path")
        return func(*args, **kwargs)


@contextmanager
def no_reads() -> Iterator[None]:
    """Inside, whatever brings a tensor's values to the host, or waits for them, raises `ReadsTheDevice`."""

    def refuse(name: str) -> Any:
        def read(*_: object, **__: object) -> Any:
            raise ReadsTheDevice(f"Tensor.{name} on the step's path")

        return read

    patches = [patch.object(torch.Tensor, name, refuse(name)) for name in HOST_READS]
    for one in patches:
        one.start()
    try:
        with _Guard():
            yield
    finally:
        for one in patches:
            one.stop()
