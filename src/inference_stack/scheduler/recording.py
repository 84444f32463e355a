"""Recording: a scheduler that writes down every call it receives and what it decides, for replaying it later.

    engine ─calls▶ RecordedScheduler ─▶ Scheduler
                        └─ records ─▶ sink (a file's writer, a list)

All instances of a device share one `Recorder`, since they share its memory. Unless asked to, neither tokens nor names of blocks
are told: names are salted, and of a sampled token only whether it may end its completion. Knows nothing of files.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b

import numpy as np

from inference_stack.core.request import Request
from inference_stack.core.stats import StepTimeModel
from inference_stack.core.step import StepPlan, StepResult, TokenDelta
from inference_stack.kv.manager import KvManager
from inference_stack.kv.slabs import ArenaGeometry
from inference_stack.policy.ordering import ORDERINGS
from inference_stack.scheduler.limits import SchedulerLimits
from inference_stack.scheduler.records import (
    EOS,
    MARK_BYTES,
    NAME_BYTES,
    ORDINARY,
    STOP,
    VERSION,
    Aborted,
    Added,
    Advanced,
    Asked,
    Drained,
    Forgotten,
    Group,
    Opened,
    Planned,
    PlanPacker,
    Record,
    Recorded,
)
from inference_stack.scheduler.scheduler import Scheduler
from inference_stack.scheduler.state import Flight

Sink = Callable[[Record], None]


class RequestNames(list[bytes]):
    """The names of one request's blocks. Those that fill while it runs are told to `note`."""

    def __init__(self, names: Sequence[bytes], note: Callable[[bytes], None]) -> None:
        super().__init__(names)
        self._note = note

    def append(self, name: bytes) -> None:
        super().append(name)
        self._note(name)


class Recorder:
    """What the recorded schedulers of one device have in common. `salt` (up to 64 bytes) is to be secret and thrown away;
    `tokens` records them in full."""

    def __init__(self, sink: Sink, geometry: ArenaGeometry, salt: bytes, tokens: bool = False) -> None:
        self.tokens = tokens
        self._sink = sink
        self._geometry = geometry
        self._salted = blake2b(digest_size=NAME_BYTES, key=salt)
        self._instances: list[Recorded] = []
        self._opened = False
        self._requests = 0
        self._forgotten: list[Forgotten] = []
        self._named: list[tuple[int, bytes]] = []

    def join(self, instance: Recorded, kv: KvManager) -> int:
        """An instance more; its number. All join before the first call is recorded: `RuntimeError` after that."""
        if self._opened:
            raise RuntimeError("instances join before anything is recorded")
        number = len(self._instances)
        self._instances.append(instance)
        kv.events.on_removed = partial(self._forget, number)
        return number

    def write(self, record: Record) -> None:
        """Append to the recording."""
        if not self._opened:
            self._opened = True
            self._sink(Opened(VERSION, self.tokens, self._geometry, self._instances))
        self._sink(record)

    def number(self, names: Sequence[bytes]) -> RequestNames:
        """A request more: its names, which tell this recorder of those that follow."""
        note = partial(self._name, self._requests)
        self._requests += 1
        return RequestNames(names, note)

    def salted(self, name: bytes) -> bytes:
        """What a block is called in this recording."""
        state = self._salted.copy()
        state.update(name)
        return state.digest()

    def forgotten(self) -> list[Forgotten]:
        """What was evicted since the last record, by any instance."""
        taken, self._forgotten = self._forgotten, []
        return taken

    def named(self) -> list[tuple[int, bytes]]:
        """Blocks that became full since the last record."""
        taken, self._named = self._named, []
        return taken

    def _name(self, request: int, name: bytes) -> None:
        self._named.append((request, self.salted(name)))

    def _forget(self, instance: int, group: int, names: Sequence[bytes]) -> None:
        marks = b"".join(self.salted(name)[:MARK_BYTES] for name in names)
        self._forgotten.append(Forgotten(instance, group, marks))


class RecordedScheduler(Scheduler):
    """A scheduler whose every call is recorded, those that raise included. Does not propose drafts."""

    def __init__(
        self,
        limits: SchedulerLimits,
        kv: KvManager,
        recorder: Recorder,
        *,
        ordering: str = "priority",
        prior: StepTimeModel | None = None,
    ) -> None:
        super().__init__(limits, kv, ORDERINGS[ordering](), prior=prior)
        self._recorder = recorder
        self._packer = PlanPacker()
        self._own_stops = False
        self._instance = recorder.join(_recorded(limits, kv, ordering, prior, recorder.tokens), kv)

    def add(self, request: Request, now: float, names: list[bytes] | None = None) -> None:
        if names is None:
            names = self.kv.hasher.request_chain(request) if self.kv.prefix_cache else []
        self._own_stops |= bool(request.continuation.params.stop_token_ids)
        salted = b"".join(map(self._recorder.salted, names))
        refused = True
        try:
            super().add(request, now, self._recorder.number(names))
            refused = False
        finally:
            forgotten = self._recorder.forgotten()
            self._recorder.write(Added(self._instance, now, self._asked(request), salted, refused, forgotten))

    def abort(self, request_id: str) -> None:
        super().abort(request_id)
        self._recorder.write(Aborted(self._instance, request_id, self._recorder.forgotten()))

    def plan(self, now: float) -> StepPlan | None:
        packed = None
        try:
            plan = super().plan(now)
            packed = None if plan is None else self._packer.pack(plan)
        finally:
            self._recorder.write(Planned(self._instance, now, packed, self._recorder.forgotten()))
        return plan

    def advance(self, result: StepResult, now: float) -> list[TokenDelta]:
        flight = self._state.flights[0] if self._state.flights else None
        special = self._special(result)
        deltas: list[TokenDelta] = []
        try:
            deltas = super().advance(result, now)
        finally:
            self._recorder.write(self._advanced(result, now, flight, special, deltas))
        return deltas

    def _advanced(
        self,
        result: StepResult,
        now: float,
        flight: Flight | None,
        special: list[tuple[int, int, int]],
        deltas: list[TokenDelta],
    ) -> Advanced:
        tokens = result.tokens.astype(np.int32, copy=False).tobytes() if self._recorder.tokens else None
        counts = result.counts.astype(np.int32, copy=False).tobytes()
        full = flight is not None and counts == flight.samples.tobytes()
        return Advanced(
            instance=self._instance,
            now=now,
            step=result.step,
            seconds=result.seconds,
            counts=None if full else counts,
            special=special,
            tokens=tokens,
            errors=list(result.errors),
            logprobs=bool(result.logprobs),
            prompt_logprobs=[(row, len(logprobs)) for row, logprobs in result.prompt_logprobs.items()],
            named=self._recorder.named(),
            ended=endings(deltas),
            forgotten=self._recorder.forgotten(),
        )

    def drain_deltas(self) -> list[TokenDelta]:
        deltas = super().drain_deltas()
        if deltas:
            self._recorder.write(Drained(self._instance, endings(deltas)))
        return deltas

    def quiet_steps(self, most: int) -> int:
        """None: every step is written down."""
        return 0

    # -- what is told of tokens

    def _special(self, result: StepResult) -> list[tuple[int, int, int]]:
        """Sampled tokens that may end a completion, in full or as what they are."""
        places: set[tuple[int, int]] = set()
        for eos in self.limits.eos_tokens:
            places.update(zip(*(axis.tolist() for axis in (result.tokens == eos).nonzero()), strict=True))
        entries = self._state.flights[0].entries if self._own_stops and self._state.flights else ()
        own = [(row, entry.request) for row, entry in enumerate(entries) if entry.special_stops]
        for row, request in own:
            stops = request.continuation.params.stop_token_ids
            places.update((row, at) for at, token in enumerate(result.tokens[row].tolist()) if token in stops)
        stops_of = {row: request.continuation.params.stop_token_ids for row, request in own}
        return [
            (row, at, self._token(int(result.tokens[row, at]), stops_of.get(row, ()))) for row, at in sorted(places)
        ]

    def _token(self, token: int, stops: Sequence[int]) -> int:
        """The token, or what stands for it."""
        if self._recorder.tokens:
            return token
        return (EOS if token in self.limits.eos_tokens else ORDINARY) | (STOP if token in stops else ORDINARY)

    def _asked(self, request: Request) -> Asked:
        continuation, params, qos = request.continuation, request.continuation.params, request.qos
        emitted, stops = continuation.emitted, params.stop_token_ids
        hidden = not self._recorder.tokens
        return Asked(
            id=request.id,
            attempt=request.attempt,
            prompt_len=len(continuation.prompt),
            emitted_len=len(emitted),
            last=self._token(emitted[-1], stops) if emitted else ORDINARY,
            max_tokens=params.max_tokens,
            min_tokens=params.min_tokens,
            ignore_eos=params.ignore_eos,
            stops=((STOP, EOS | STOP) if stops else ()) if hidden else stops,
            prompt_logprobs=params.prompt_logprobs is not None,
            priority=qos.priority,
            arrival=request.arrival,
            deadline=qos.deadline,
            ttft_deadline=qos.ttft_deadline,
            isolated=request.isolated,
            known=None if hidden else array("i", continuation.prompt + emitted).tobytes(),
        )


def endings(deltas: Sequence[TokenDelta]) -> list[tuple[str, str]]:
    """Who ended, and why."""
    return [(delta.request_id, delta.finish.value) for delta in deltas if delta.finish is not None]


def _recorded(
    limits: SchedulerLimits, kv: KvManager, ordering: str, prior: StepTimeModel | None, tokens: bool
) -> Recorded:
    believed = prior or StepTimeModel()
    groups = [
        Group(spec.name, len(spec.layers), spec.kv_heads, spec.head_dim, spec.dtype, spec.window) for spec in kv.groups
    ]
    plain = {name: getattr(limits, name) for name in ("max_running", "max_batch_tokens", "max_model_len", "itl_target")}
    eos = limits.eos_tokens if tokens or not limits.eos_tokens else (EOS, EOS | STOP)
    coefficients = (believed.base, believed.per_token, believed.per_row, believed.per_context)
    return Recorded(kv.model, groups, SchedulerLimits(**plain, eos_tokens=eos), ordering, kv.prefix_cache, coefficients)
