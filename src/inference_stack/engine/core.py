"""The engine core: schedulers and runners of the instances on one device, advanced one step at a time.

Usable in-process without any wire: `add`, `abort`, `step`. Up to `depth` steps are launched before the oldest is awaited.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from inference_stack.core.errors import InferenceError, invalid, model_not_found, unavailable
from inference_stack.core.request import FinishReason, Request
from inference_stack.core.seams import Clock, InFlightStep, Runner
from inference_stack.core.stats import InstanceStats
from inference_stack.core.step import TokenDelta
from inference_stack.scheduler.scheduler import Scheduler
from inference_stack.telemetry.laps import Laps, NoLaps


class Sleeps(Protocol):
    """Weights that can leave the device and come back. Raises `InferenceError` when they cannot."""

    asleep: bool

    def sleep(self) -> int:
        """Leave the device; the bytes that this gives back."""
        ...

    def wake(self) -> None:
        """Come back."""
        ...


@dataclass(slots=True)
class Instance:
    """One served model: its scheduler, its runner, and the steps between them; and what lets it sleep, where it can."""

    name: str
    vocab_size: int
    scheduler: Scheduler
    runner: Runner
    in_flight: deque[InFlightStep] = field(default_factory=deque)
    schedule_seconds: float = 0.0
    sleeper: Sleeps | None = None

    @property
    def asleep(self) -> bool:
        """Whether its weights are off the device, so that it takes no requests."""
        return self.sleeper is not None and self.sleeper.asleep

    def sleep(self) -> int:
        """Give the memory of its weights back; the bytes. Raises `InferenceError` while it works, or when it cannot sleep."""
        if self.busy:
            raise unavailable(f"The model {self.name} is working; it sleeps when nothing is left to do.")
        return self._sleeper().sleep()

    def wake(self) -> None:
        """Serve again. Raises `InferenceError` when there is no room for its weights, or it cannot sleep at all."""
        self._sleeper().wake()

    def _sleeper(self) -> Sleeps:
        if self.sleeper is None:
            raise invalid(f"The model {self.name} cannot sleep: it was not loaded for that.", param="model")
        return self.sleeper

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.in_flight) or self.scheduler.has_work


def _check_content(request: Request, instance: Instance) -> None:
    """Raises `InferenceError` for what the model does not have: it must not reach a kernel."""
    known = (*request.continuation.prompt, *request.continuation.emitted)
    if known and not 0 <= min(known) <= max(known) < instance.vocab_size:
        raise invalid(f"Token ids must be from 0 to {instance.vocab_size - 1}.", param="prompt", code="invalid_token")
    if request.adapter:
        raise invalid(f"There is no adapter `{request.adapter}` here.", param="model", code="adapter_not_found")


class EngineCore:
    """Runs the instances of one device. `depth` (0, 1 or 2) is how far planning may run ahead of results. `stepped` is called
    after every step, each of `closed` when no more will be asked."""

    def __init__(
        self,
        instances: Sequence[Instance],
        clock: Clock,
        depth: int = 0,
        closed: Sequence[Callable[[], None]] = (),
        stepped: Callable[[], None] = lambda: None,
    ) -> None:
        self._instances = {instance.name: instance for instance in instances}
        self._owner: dict[str, Instance] = {}
        self._clock = clock
        self._depth = depth
        self._closed = closed
        self._stepped = stepped
        self._refused: list[TokenDelta] = []
        self.steps = 0
        self.laps: Laps = NoLaps()

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The served models."""
        return tuple(self._instances.values())

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._refused) or any(instance.busy for instance in self._instances.values())

    def add(self, request: Request) -> None:
        """Queue a request. What cannot be accepted is reported by the next step as an error delta."""
        try:
            instance = self._instances.get(request.model)
            if instance is None:
                raise model_not_found(request.model)
            if instance.asleep:
                raise unavailable(f"The model {request.model} sleeps; it has to be woken first.")
            _check_content(request, instance)
            instance.scheduler.add(request, self._clock.now())
            self._owner[request.id] = instance
        except InferenceError as error:
            self._refused.append(
                TokenDelta(request_id=request.id, attempt=request.attempt, finish=FinishReason.ERROR, error=error.info)
            )

    def abort(self, request_id: str) -> None:
        """Stop a request at once; unknown and finished ones are ignored."""
        instance = self._owner.pop(request_id, None)
        if instance is not None:
            instance.scheduler.abort(request_id)

    def step(self) -> tuple[TokenDelta, ...]:
        """Advance every instance by one step; the news, in order per request."""
        deltas, self._refused = self._refused, []
        for instance in self._instances.values():
            if instance.busy:
                deltas += self._advance(instance)
        for delta in deltas:
            if delta.finish is not None:
                self._owner.pop(delta.request_id, None)
        self._stepped()
        return tuple(deltas)

    def stats(self) -> tuple[InstanceStats, ...]:
        """Every instance's numbers."""
        return tuple(
            replace(instance.scheduler.stats(), schedule_seconds=instance.schedule_seconds)
            for instance in self._instances.values()
        )

    def check(self) -> None:
        """Verify the bookkeeping of every instance. Raises what `Scheduler.check` raises."""
        for instance in self._instances.values():
            instance.scheduler.check()

    def close(self) -> None:
        """Nothing more will be asked: what is written behind our back is written to the end."""
        for close in self._closed:
            close()

    def _advance(self, instance: Instance) -> list[TokenDelta]:
        began = self._clock.now()
        plan = instance.scheduler.plan(began)
        instance.schedule_seconds += self._clock.now() - began
        self.laps.lap("scheduler: plan")
        if plan is not None:
            instance.in_flight.append(instance.runner.launch(plan))
        deltas: list[TokenDelta] = []
        allowed = self._depth if plan is not None else max(len(instance.in_flight) - 1, 0)
        while len(instance.in_flight) > allowed:
            self.laps.lap("launch")
            result = instance.in_flight.popleft().wait()
            self.laps.lap("waits for the device")
            began = self._clock.now()
            deltas += instance.scheduler.advance(result, began)
            instance.schedule_seconds += self._clock.now() - began
            self.laps.lap("scheduler: advance")
            self.steps += 1
        return deltas + instance.scheduler.drain_deltas()
