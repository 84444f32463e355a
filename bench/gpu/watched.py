"""A runner that notes what steps it was given, so that the least time of exactly these steps is known afterwards."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from bench.gpu.house import House
from bench.gpu.limits import Limits, Row, busy_share
from bench.gpu.place import Place

from inference_stack.core.seams import InFlightStep, Runner
from inference_stack.core.step import IntArray, StepPlan


class Watched:
    """In front of an instance's runner; costs a step one call."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.steps: list[tuple[IntArray, IntArray, IntArray]] = []

    def launch(self, plan: StepPlan) -> InFlightStep:
        """See `Runner`."""
        self.steps.append((plan.start, plan.num_tokens, plan.samples))
        return self._runner.launch(plan)

    def floor(self, limits: Limits, since: int = 0) -> float:
        """Seconds that the steps from number `since` on take at least."""
        return sum(limits.step(rows_of(*step)) for step in self.steps[since:])


def rows_of(start: IntArray, queries: IntArray, samples: IntArray) -> list[Row]:
    """The rows of a plan."""
    columns = zip(queries.tolist(), (start + queries).tolist(), samples.tolist(), strict=True)
    return [Row(*column) for column in columns]


def watch(house: House) -> Watched:
    """From now on, note the steps of an engine's one model."""
    (instance,) = house.core.instances
    watched = Watched(instance.runner)
    instance.runner = watched
    return watched


@dataclass(frozen=True, slots=True)
class Kernels:
    """What the device did during some steps: its idle share, launches a step, and the kernels that took longest."""

    idle: float
    launches: float
    slowest: tuple[tuple[str, float, float], ...]
    """Name, how often a step, microseconds a step."""


def kernels_of(house: House, place: Place, steps: int) -> Kernels | None:
    """Profile so many steps of an engine that is busy; None on CPUs, and where the profiler does not work."""
    if not place.on_card:
        return None
    activity = torch.profiler.ProfilerActivity.CUDA
    with torch.profiler.profile(activities=[activity]) as profile:
        for _ in range(steps):
            house.step()
        place.wait()
    spans: list[tuple[float, float]] = []
    by_name: dict[str, list[float]] = {}
    for event in profile.events() or []:
        if str(event.device_type).endswith("CUDA"):
            spans.append((event.time_range.start, event.time_range.end))
            by_name.setdefault(event.name, []).append(event.time_range.end - event.time_range.start)
    if not spans:
        return None
    ranked = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:20]
    slowest = tuple((name[:120], len(times) / steps, sum(times) / steps) for name, times in ranked)
    return Kernels(1 - busy_share(spans), len(spans) / steps, slowest)


@dataclass(frozen=True, slots=True)
class Timed:
    """Some steps: wall seconds, how many, tokens that came out, and the least seconds of the same steps."""

    seconds: float
    steps: int
    tokens: int
    floor: float

    @property
    def ratio(self) -> float:
        """Of the limit that was reached."""
        return self.floor / self.seconds if self.seconds else 0.0


def timed_steps(house: House, watched: Watched, limits: Limits, steps: int) -> Timed:
    """So many steps of an engine that is busy."""
    since, tokens = len(watched.steps), 0
    began = time.perf_counter()
    for _ in range(steps):
        tokens += house.step()
    seconds = time.perf_counter() - began
    return Timed(seconds, steps, tokens, watched.floor(limits, since))
