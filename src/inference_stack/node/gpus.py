"""What GPUs do at the moment, as NVML tells it: read now and then by the node, beside everything that serves.

A card that does not know a number (a temperature, a clock) is shown without it; one that does not answer is not shown. Knows
NVML; who looks at the numbers, and how often, is others' business.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from typing import Any

from inference_stack.core.stats import GpuStats

log = logging.getLogger(__name__)

LIBRARY = "pynvml"


class GpuReader:
    """Reads every GPU of this machine. `read` takes milliseconds, so it belongs into a thread; one at a time."""

    def __init__(self, library: str = LIBRARY) -> None:
        self._library = library
        self._nvml: Any = None
        self._told = False

    def read(self) -> tuple[GpuStats, ...]:
        """Every GPU now; none where NVML is not there or does not answer, which is logged once."""
        if self._nvml is None and not self._open():
            return ()
        nvml = self._nvml
        try:
            found = [self._gpu(index) for index in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            self._tell(error)
            self.close()
            return ()
        return tuple(one for one in found if one is not None)

    def close(self) -> None:
        """Let go of NVML; the next `read` opens it again."""
        nvml, self._nvml = self._nvml, None
        if nvml is None:
            return
        try:
            nvml.nvmlShutdown()
        except nvml.NVMLError as error:
            self._tell(error)

    def _open(self) -> bool:
        if importlib.util.find_spec(self._library) is None:
            return False
        nvml = importlib.import_module(self._library)
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            self._tell(error)
            return False
        self._nvml = nvml
        return True

    def _gpu(self, index: int) -> GpuStats | None:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            memory, uuid = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetUUID(handle)
        except nvml.NVMLError as error:
            self._tell(error)
            return None
        return GpuStats(
            index=index,
            uuid=uuid if isinstance(uuid, str) else uuid.decode(),
            memory_used=int(memory.used),
            memory_total=int(memory.total),
            utilisation=self._known(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu, 0.01),
            sm_clock=self._known(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM), 1e6),
            temperature=self._known(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU), 1.0),
            power=self._known(lambda: nvml.nvmlDeviceGetPowerUsage(handle), 0.001),
        )

    def _known(self, read: Callable[[], Any], unit: float) -> float | None:
        """A number in our unit; None from a card that does not tell it."""
        try:
            return float(read()) * unit
        except self._nvml.NVMLError:
            return None

    def _tell(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            log.warning("GPUs cannot be read: %s", error)
