"""GPUs as gauges in base units, a series for each card of each node. Knows numbers; where they come from is the node's business."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import Gauge

from inference_stack.core.stats import GpuStats

LABELS: Final = ("node", "gpu", "uuid")
READINGS: Final[dict[str, tuple[str, Callable[[GpuStats], float | None]]]] = {
    "gpu_utilisation_ratio": ("Share of the time in which a GPU did something.", lambda gpu: gpu.utilisation),
    "gpu_memory_used_bytes": ("Memory of a GPU that is taken, by whomever.", lambda gpu: gpu.memory_used),
    "gpu_memory_total_bytes": ("Memory of a GPU.", lambda gpu: gpu.memory_total),
    "gpu_sm_clock_hertz": ("Clock of a GPU's multiprocessors.", lambda gpu: gpu.sm_clock),
    "gpu_temperature_celsius": ("Temperature of a GPU.", lambda gpu: gpu.temperature),
    "gpu_power_watts": ("Power that a GPU draws.", lambda gpu: gpu.power),
}


class GpuMetrics:
    """The gauges. `gauge` makes one of a name, a help text and labels."""

    def __init__(self, gauge: Callable[..., Gauge]) -> None:
        self._gauges = {name: gauge(name, text, *LABELS) for name, (text, _) in READINGS.items()}
        self._shown: dict[str, set[tuple[str, tuple[str, str, str]]]] = {}

    def observe(self, node: str, gpus: Iterable[GpuStats]) -> None:
        """Take in a node's GPUs; cards and numbers that are not told any more disappear."""
        seen: set[tuple[str, tuple[str, str, str]]] = set()
        for gpu in gpus:
            labels = (node, str(gpu.index), gpu.uuid)
            for name, (_, read) in READINGS.items():
                if (value := read(gpu)) is not None:
                    self._gauges[name].labels(*labels).set(value)
                    seen.add((name, labels))
        for name, labels in self._shown.get(node, set()) - seen:
            self._gauges[name].remove(*labels)
        self._shown[node] = seen

    def forget(self, node: str) -> None:
        """Nothing more will be told of it."""
        self.observe(node, ())
        del self._shown[node]
