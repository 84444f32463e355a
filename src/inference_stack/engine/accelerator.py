"""The `Device` seam for GPUs: memory, one copy to the device a step, results without waiting.

Everything is put into one queue in the order of the steps, so a block freed by a step is written again only behind it. What is
peculiar to CUDA is `engine/streams.py`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from inference_stack.config.sizes import format_size
from inference_stack.core.errors import SERVER_ERROR, ErrorInfo, InferenceError
from inference_stack.engine.staging import Fetched, Staging
from inference_stack.engine.streams import CudaStreams, Point, Streams

STAGING_BYTES = 4 << 20
"""Of one step's uploads: half a million tokens of prompts."""
TURNS = 4
"""Steps that may be under way at once, and one that is being prepared."""


class Accelerator:
    """One GPU."""

    shares_memory = False

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.torch_device = streams.device
        self.name = str(streams.device)
        self.staging = Staging(streams, STAGING_BYTES, TURNS)
        self._began: Point | None = None
        self._timed = True

    def total_bytes(self) -> int:
        """Memory of the card."""
        return self.streams.memory()[1]

    def free_bytes(self) -> int:
        """Memory that nobody has."""
        return self.streams.memory()[0]

    def allocate(self, nbytes: int) -> Tensor:
        """Zeroed uint8 [nbytes]. Raises `InferenceError` when it does not fit."""
        free = self.free_bytes()
        try:
            if nbytes > free:
                raise torch.OutOfMemoryError
            return torch.zeros(nbytes, dtype=torch.uint8, device=self.torch_device)
        except torch.OutOfMemoryError as error:
            raise InferenceError(
                ErrorInfo(
                    message=f"{format_size(nbytes)} do not fit into the {format_size(free)} of free memory of "
                    f"{self.name}; lower --kv-memory",
                    type=SERVER_ERROR,
                    code="out_of_memory",
                    status=500,
                )
            ) from error

    def peak_bytes(self) -> int:
        """Most memory that work took beside what lasts."""
        if self.torch_device.type != "cuda":
            return 0
        return torch.cuda.max_memory_allocated(self.torch_device) - torch.cuda.memory_allocated(self.torch_device)

    def settle(self) -> None:
        """Give back what loading took from the card and no longer uses; the peak counts from here."""
        if self.torch_device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.torch_device)

    def begin(self) -> None:
        """A step begins."""
        self.staging.begin()
        self._began, self._timed = None, True

    def upload(self, column: np.ndarray) -> Tensor:
        """A host array as a tensor, there after the next `send`, until the step is over."""
        return self.staging.put(column)

    def send(self) -> None:
        """Copy what was uploaded since the last time. A step's time on the device begins with its first copy."""
        self._began = self._began or self.streams.point()
        self.staging.send()

    def untimed(self) -> None:
        """This step compiles or records: its time says nothing about the next one's."""
        self._timed = False

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy in memory of its own."""
        return tensor.clone()

    def fetch(self, tensors: Sequence[Tensor]) -> Fetched:
        """Copy tensors to the host, behind all queued work. The step ends here."""
        began = self._began or self.streams.point()
        fetched = Fetched(self.streams, tensors, began if self._timed else None)
        self.staging.end(fetched.point)
        return fetched

    def isa(self) -> str:
        """What the kernels were compiled for."""
        return self.streams.isa()


def cuda_device(index: int = 0) -> Accelerator:
    """The CUDA device with this number. Work goes to its current stream."""
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return Accelerator(CudaStreams(device))
