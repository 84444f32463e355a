"""Numbers an instance reports about itself: load, memory, speed, start-up.

They travel with every step's message; metrics, admission and routing read them.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimeModel:
    """Predicted seconds of a step, linear in what it computes.

    base + per_token · query tokens + per_row · rows + per_context · (sum over rows of context tokens read).
    """

    base: float = 0.0
    per_token: float = 0.0
    per_row: float = 0.0
    per_context: float = 0.0

    def predict(self, tokens: int, rows: int, context: int) -> float:
        """Seconds that a step of this size should take."""
        return self.base + self.per_token * tokens + self.per_row * rows + self.per_context * context


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceStats:
    """One model instance after one step. Counters are totals since the instance started; gauges are of now."""

    model: str
    running: int = 0
    waiting: int = 0
    kv_blocks_total: int = 0
    kv_blocks_used: int = 0
    kv_blocks_cached: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    schedule_seconds: float = 0.0
    step_seconds: float = 0.0
    step_time: StepTimeModel = StepTimeModel()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuStats:
    """One GPU of a node at one moment. `index` and `uuid` as its driver has them; memory in bytes, whoever took it.

    `utilisation` is a share of the time, `sm_clock` in hertz, `temperature` in degrees Celsius, `power` in watts; None where the
    card does not tell.
    """

    index: int
    uuid: str
    memory_used: int
    memory_total: int
    utilisation: float | None = None
    sm_clock: float | None = None
    temperature: float | None = None
    power: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Where start-up's seconds and a device's bytes went, and what was derived. Stages are in order, seconds each."""

    stages: tuple[tuple[str, float], ...] = ()
    total_seconds: float = 0.0
    memory: tuple[tuple[str, int], ...] = ()
    derived: dict[str, str] = field(default_factory=dict)

    @property
    def unattributed_seconds(self) -> float:
        """Start-up time that no stage explains."""
        return self.total_seconds - sum(seconds for _, seconds in self.stages)
