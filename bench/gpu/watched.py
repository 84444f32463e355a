"""A runner that notes what steps it was given, and how long the device worked on each: the least time of exactly these steps is
known afterwards, and for how long the device had none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from bench.gpu.house import House
from bench.gpu.limits import Limits, Row
from bench.gpu.place import Place

from inference_stack.core.seams import InFlightStep, Runner
from inference_stack.core.step import IntArray, StepPlan, StepResult


class Watched:
    """In front of an instance's runner; costs a step one call."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.steps: list[tuple[IntArray, IntArray, IntArray]] = []
        self.seconds: list[float] = []
        """That the device worked on each step that has retired, as its own events have it: from `Device.begin` to the results."""

    def launch(self, plan: StepPlan) -> InFlightStep:
        """See `Runner`."""
        self.steps.append((plan.start, plan.num_tokens, plan.samples))
        return Noted(self._runner.launch(plan), self.seconds)

    def floor(self, limits: Limits, since: int = 0, until: int | None = None) -> float:
        """Seconds that the steps from number `since` on take at least, to the last one or before number `until`."""
        return sum(limits.step(rows_of(*step)) for step in self.steps[since:until])


class Noted:
    """A step in flight, whose time is noted when it retires."""

    __slots__ = ("_seconds", "_step")

    def __init__(self, step: InFlightStep, seconds: list[float]) -> None:
        self._step, self._seconds = step, seconds

    def wait(self) -> StepResult:
        """See `InFlightStep`."""
        result = self._step.wait()
        self._seconds.append(result.seconds)
        return result


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
    """What the device did during some steps: launches a step, and the kernels that took longest.

    Times are of profiled steps: good for ranking kernels, not for adding up, since profiling holds both sides up.
    """

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
    by_name: dict[str, list[float]] = {}
    for event in profile.events() or []:
        if str(event.device_type).endswith("CUDA"):
            by_name.setdefault(event.name, []).append(event.time_range.end - event.time_range.start)
    if not by_name:
        return None
    ranked = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:20]
    slowest = tuple((name[:120], len(times) / steps, sum(times) / steps) for name, times in ranked)
    return Kernels(sum(map(len, by_name.values())) / steps, slowest)


@dataclass(frozen=True, slots=True)
class Timed:
    """Some steps: wall seconds, how many of them the device worked on a step, how many steps, tokens that came out, and the least
    seconds of the same steps."""

    seconds: float
    worked: float
    steps: int
    tokens: int
    floor: float

    @property
    def ratio(self) -> float:
        """Of the limit that was reached."""
        return self.floor / self.seconds if self.seconds else 0.0


def timed_steps(house: House, watched: Watched, limits: Limits, steps: int, parts: int) -> list[Timed]:
    """Parts of so many steps each, of an engine that is busy. Nothing else is done between them: a device that finishes a step
    while nobody counts would seem faster than it is."""
    marks, tokens = [_mark(watched)], []
    for _ in range(parts):
        tokens.append(sum(house.step() for _ in range(steps)))
        marks.append(_mark(watched))
    return [
        Timed(
            seconds=end - began,
            worked=sum(watched.seconds[retired:last_retired]),
            steps=steps,
            tokens=count,
            floor=watched.floor(limits, since, until),
        )
        for (began, since, retired), (end, until, last_retired), count in zip(marks, marks[1:], tokens, strict=False)
    ]


def _mark(watched: Watched) -> tuple[float, int, int]:
    """The time, and how many steps were launched and have retired."""
    return time.perf_counter(), len(watched.steps), len(watched.seconds)


def idle_share(parts: Sequence[Timed]) -> float:
    """How much of the time the device worked on no step: gaps between steps, none that lie within one."""
    return 1 - sum(part.worked for part in parts) / sum(part.seconds for part in parts)
