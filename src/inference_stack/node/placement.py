"""The workers of a node, what runs on each, and which of them gets the next request.

An isolated request (suspected of having brought workers down) is kept from others until it has emitted a token: its worker is
emptied first, and meanwhile gets nothing else. What no worker may take now is held back, in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from inference_stack.core.fleet import ModelInfo
from inference_stack.core.stats import InstanceStats
from inference_stack.node.gateways import GatewayLink
from inference_stack.node.runs import Run as AnyRun
from inference_stack.node.supervisor import Supervisor
from inference_stack.policy.placement import Load, least_wait

GAUGES: Final = ("running", "waiting", "kv_blocks_total", "kv_blocks_used", "kv_blocks_cached")
TOTALS: Final = (
    "steps",
    "prompt_tokens",
    "generation_tokens",
    "prefix_queries",
    "prefix_hits",
    "preemptions",
    "schedule_seconds",
    "step_seconds",
)


@dataclass(slots=True, eq=False)
class Slot:
    """One worker's place. `trial` is an isolated request that it is reserved for, or that it runs and that has not emitted yet.

    `accepting` is false while its models change. `prompt` counts prompt tokens still to compute, `context` those of requests
    that decode.
    """

    supervisor: Supervisor
    runs: dict[str, Run] = field(default_factory=dict)
    stats: dict[str, InstanceStats] = field(default_factory=dict)
    trial: Run | None = None
    accepting: bool = True
    prompt: int = 0
    context: int = 0

    @property
    def usable(self) -> bool:
        """Whether requests may be passed on."""
        return self.accepting and self.supervisor.ready

    def model(self, name: str) -> ModelInfo | None:
        """The model of this name, if it can run requests now."""
        models = self.supervisor.condition.models if self.usable else ()
        return next((info for info in models if info.name == name), None)

    def add(self, run: Run) -> None:
        """A request is passed on."""
        self.runs[run.id] = run
        run.place = self
        self.prompt += run.known_tokens

    def began(self, run: Run) -> None:
        """Its first token: its prompt is no longer ahead of anyone, and it is acquitted if it was on trial."""
        run.began = True
        self.prompt -= run.known_tokens
        self.context += run.known_tokens
        self._acquit(run)

    def remove(self, run: Run) -> None:
        """A request has left."""
        if self.runs.pop(run.id, None) is not None:
            if run.began:
                self.context -= run.known_tokens
            else:
                self.prompt -= run.known_tokens
        self._acquit(run)
        run.place = None

    def _acquit(self, run: Run) -> None:
        if self.trial is run:
            self.trial = None

    def load(self, info: ModelInfo, chunk: int) -> Load:
        """How a request for this model finds it."""
        stats = self.stats.get(info.name)
        return Load(
            speed=info.step_time if stats is None else stats.step_time,
            chunk=chunk,
            places=info.max_running,
            rows=len(self.runs),
            prompt=self.prompt,
            context=self.context,
        )


Run = AnyRun[GatewayLink, Slot]


class Placement:
    """Chooses among `slots`. `chunk` is how many query tokens a step takes."""

    def __init__(self, slots: tuple[Slot, ...], chunk: int) -> None:
        self.slots = slots
        self._chunk = chunk
        self._held: dict[str, Run] = {}
        self._ended: dict[str, InstanceStats] = {}

    def serves(self, model: str) -> bool:
        """Whether some worker can run requests of this model now."""
        return any(slot.model(model) is not None for slot in self.slots)

    def place(self, run: Run) -> Slot | None:
        """The worker for a request whose model some worker serves; None when it is held back until `released`."""
        slot = self._for_isolated(run) if run.request.isolated else self._for_any(run)
        if slot is None:
            self._held[run.id] = run
        else:
            slot.add(run)
        return slot

    def _for_any(self, run: Run) -> Slot | None:
        found = [(slot, slot.model(run.request.model)) for slot in self.slots if slot.trial is None]
        able = [(slot, info) for slot, info in found if info is not None]
        if len(able) < 2:
            return able[0][0] if able else None
        loads = [slot.load(info, self._chunk) for slot, info in able]
        return able[least_wait(loads, run.known_tokens)][0]

    def _for_isolated(self, run: Run) -> Slot | None:
        """The worker reserved for it, once that is empty."""
        slot = next((slot for slot in self.slots if slot.trial is run), None)
        if slot is not None and not slot.usable:
            slot.trial = None
            slot = None
        if slot is None:
            able = [slot for slot in self.slots if slot.trial is None and slot.model(run.request.model) is not None]
            slot = min(able, key=lambda slot: len(slot.runs), default=None)
        if slot is None:
            return None
        slot.trial = run
        return None if slot.runs else slot

    def remove(self, run: Run) -> None:
        """A request leaves, wherever it is."""
        self._held.pop(run.id, None)
        for slot in self.slots:
            if slot.trial is run:
                slot.trial = None
        if run.place is not None:
            run.place.remove(run)

    def released(self) -> Iterator[tuple[Run, Slot | None]]:
        """Held requests that can go on, each with its worker now; None when no worker serves its model any more."""
        for run in list(self._held.values()):
            del self._held[run.id]
            if not self.serves(run.request.model):
                yield run, None
            elif slot := self.place(run):
                yield run, slot

    @property
    def holds(self) -> bool:
        """Whether requests are held back."""
        return bool(self._held)

    def observe(self, slot: Slot, stats: tuple[InstanceStats, ...]) -> tuple[InstanceStats, ...]:
        """A worker's numbers, taken in; the node's numbers of the same models: sums over its workers, of all their lives."""
        slot.stats.update((numbers.model, numbers) for numbers in stats)
        if len(self.slots) == 1:
            return stats
        return tuple(self._sum(numbers.model) for numbers in stats)

    def _sum(self, model: str) -> InstanceStats:
        live = [slot.stats[model] for slot in self.slots if model in slot.stats]
        parts = [*live, self._ended[model]] if model in self._ended else live
        summed = {name: sum(getattr(part, name) for part in parts) for name in (*GAUGES, *TOTALS)}
        return replace(live[0], **summed)

    def forget(self, slot: Slot) -> None:
        """A worker has ended: its totals stay, what it holds is gone. With the last one all begins anew."""
        for model, numbers in slot.stats.items():
            before = self._ended.get(model, InstanceStats(model=model))
            totals = {name: getattr(before, name) + getattr(numbers, name) for name in TOTALS}
            self._ended[model] = InstanceStats(model=model, **totals)
        slot.stats.clear()
        if not any(other.usable for other in self.slots):
            self._ended.clear()
