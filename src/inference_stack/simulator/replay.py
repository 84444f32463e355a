"""Replay: a recording's calls made again on the production scheduler, and what it decides compared with what was decided.

    recording ─calls, results─▶ Scheduler ─plans, evictions, endings─▶ compare ─▶ the first difference

The scheduler may be changed: the first difference is where that begins to matter. What follows can only be counted, with results
made out for the plans that the changed scheduler makes. Knows no file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from inference_stack.core.errors import InferenceError, invalid
from inference_stack.core.request import Request
from inference_stack.core.step import StepPlan, StepResult, ints
from inference_stack.kv.events import EVERY_GROUP
from inference_stack.scheduler.recording import endings
from inference_stack.scheduler.records import (
    MARK_BYTES,
    VERSION,
    Aborted,
    Added,
    Advanced,
    Columns,
    Drained,
    Entered,
    Forgotten,
    Opened,
    Planned,
    PlanPacker,
    PlanReader,
    Record,
    Step,
    columns_of,
)
from inference_stack.scheduler.scheduler import Scheduler
from inference_stack.simulator.rebuilt import (
    FAILED,
    UNTOLD,
    Changes,
    RecordedNames,
    names_in,
    rebuild,
    request_of,
    result_of,
)

Told = dict[str, str]
"""A decision in words: of what, and what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where the replay first decides otherwise. `plan` counts the instance's plans from 0; `rows` are what differs: of what,
    recorded, replayed; `alike` is how much of the same decision does not."""

    model: str
    what: str
    plan: int
    seconds: float
    rows: tuple[tuple[str, str, str], ...]
    alike: int


@dataclass(slots=True)
class Verdict:
    """What a replay came to. `seconds` is the time the recording spans; counters after the first difference go on only where
    counting was asked for."""

    first: Difference | None = None
    requests: int = 0
    plans: int = 0
    plans_that_differ: int = 0
    evicted: list[int] = field(default_factory=lambda: [0, 0])
    ended: list[int] = field(default_factory=lambda: [0, 0])
    seconds: float = 0.0

    @property
    def identical(self) -> bool:
        """Every decision was the same."""
        return self.first is None


@dataclass(slots=True)
class Foreseen:
    """What a whole recording tells of its requests, for plans that were never made: the names of their blocks by number, and by
    id and position the tokens that are not ordinary (None: the request failed there)."""

    names: dict[int, list[bytes]] = field(default_factory=dict)
    tokens: dict[tuple[str, int], int | None] = field(default_factory=dict)


@dataclass(slots=True)
class _Side:
    """One instance's plans as recorded, or as replayed: in flight, and who is in which slot."""

    reader: PlanReader = field(default_factory=PlanReader)
    flights: deque[Columns] = field(default_factory=deque)
    ids: dict[int, str] = field(default_factory=dict)

    def launch(self, step: Step | None) -> Columns | None:
        """A plan more."""
        if step is None:
            return None
        self.ids.update((new.slot, new.id) for new in step.entered)
        columns = self.reader.read(step)
        self.flights.append(columns)
        return columns


def foresee(records: Iterable[Record]) -> Foreseen:
    """Read a recording ahead."""
    seen, sides = Foreseen(), dict[int, _Side]()
    for record in records:
        if isinstance(record, Planned):
            sides.setdefault(record.instance, _Side()).launch(record.plan)
        elif isinstance(record, Advanced):
            for number, name in record.named:
                seen.names.setdefault(number, []).append(name)
            side = sides[record.instance]
            slots, start, count, _ = side.flights.popleft()
            tokens = [(row, token) for row, _, token in record.special]
            for row, token in (*tokens, *((row, None) for row in record.errors)):
                seen.tokens[side.ids[int(slots[row])], int(start[row] + count[row])] = token
    return seen


class _Instance:
    """One recorded instance and its replay."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.recorded, self.replayed = _Side(), _Side()
        self.packer = PlanPacker()
        self.flights: deque[StepPlan] = deque()
        self.requests: dict[str, Request] = {}
        self.plans = 0

    def made_out(self, plan: StepPlan, columns: Columns, foreseen: Foreseen, seconds: float) -> StepResult:
        """The result of a plan that was never made: what the recording says of its requests at these positions."""
        slots, start, count, samples = columns
        tokens = np.full((len(slots), 1), -1, np.int32)
        result = StepResult(step=plan.step, model=plan.model, tokens=tokens, counts=samples, seconds=seconds)
        for row, slot in enumerate(slots.tolist()):
            request_id, end = self.replayed.ids[slot], int(start[row] + count[row])
            continuation = self.requests[request_id].continuation
            if continuation.params.prompt_logprobs is not None:
                owed = min(end, len(continuation.prompt) - 1) - int(start[row])
                result.prompt_logprobs[row] = (UNTOLD,) * max(0, owed)
            if samples[row]:
                token = foreseen.tokens.get((request_id, end), -1)
                if token is None:
                    result.errors[row] = FAILED
                else:
                    tokens[row, 0] = token
        return result


class Replay:
    """Feeds records to rebuilt schedulers, in order. With `foreseen` it goes on after the first difference."""

    def __init__(self, opened: Opened, changes: Changes, foreseen: Foreseen | None = None) -> None:
        if opened.version != VERSION:
            raise invalid(f"the recording is of version {opened.version}, this can replay {VERSION}", param="file")
        self.verdict = Verdict()
        self._foreseen = foreseen
        self._instances = [_Instance(scheduler) for scheduler in rebuild(opened, changes)]
        self._forgotten: list[Forgotten] = []
        self._names: dict[int, RecordedNames] = {}
        self._began: float | None = None
        for number, instance in enumerate(self._instances):
            instance.scheduler.kv.events.on_removed = partial(self._forget, number)

    def feed(self, record: Record) -> None:
        """Make one call again. Raises `InferenceError` when the recording contradicts itself."""
        match record:
            case Added():
                self._add(record)
            case Aborted():
                self._instances[record.instance].scheduler.abort(record.id)
                self._evictions(record.instance, record.forgotten)
            case Planned():
                self._plan(record)
            case Advanced():
                self._advance(record)
            case Drained():
                self._endings(record.instance, record.ended, endings(self._scheduler(record).drain_deltas()))
            case Opened():
                raise invalid("the recording begins twice", param="file")

    # -- calls

    def _scheduler(self, record: Added | Aborted | Planned | Advanced | Drained) -> Scheduler:
        return self._instances[record.instance].scheduler

    def _add(self, record: Added) -> None:
        self._pass(record.now)
        instance, number = self._instances[record.instance], self.verdict.requests
        scheduler = instance.scheduler
        request = request_of(record.request, scheduler.kv.model)
        later = [] if self._foreseen is None else self._foreseen.names.get(number, [])
        names = self._names[number] = names_in(record, number, later)
        self.verdict.requests += 1
        try:
            scheduler.add(request, record.now, names if scheduler.kv.prefix_cache else [])
            refused = ""
        except InferenceError as error:
            refused = f"refused: {error}"
        instance.requests[request.id] = request
        told = "refused" if record.refused else "accepted"
        if bool(refused) != record.refused:
            self._differ(record.instance, "admission", {request.id: told}, {request.id: refused or "accepted"})
        self._evictions(record.instance, record.forgotten)

    def _plan(self, record: Planned) -> None:
        self._pass(record.now)
        instance = self._instances[record.instance]
        plan = instance.scheduler.plan(record.now)
        step = None if plan is None else instance.packer.pack(plan)
        if plan is not None:
            instance.flights.append(plan)
        was, now = instance.recorded.launch(record.plan), instance.replayed.launch(step)
        self.verdict.plans += 1
        if step != record.plan or self.verdict.first is not None:
            groups = [spec.name for spec in instance.scheduler.kv.groups]
            recorded, replayed = (
                describe(made, columns, side.ids, groups)
                for made, columns, side in ((record.plan, was, instance.recorded), (step, now, instance.replayed))
            )
            if recorded != replayed:
                self.verdict.plans_that_differ += 1
                self._differ(record.instance, "plan", recorded, replayed)
        instance.plans += 1
        self._evictions(record.instance, record.forgotten)

    def _advance(self, record: Advanced) -> None:
        self._pass(record.now)
        instance = self._instances[record.instance]
        if not instance.recorded.flights:
            raise invalid("the recording has a result without a plan", param="file")
        instance.recorded.flights.popleft()
        ended: list[tuple[str, str]] = []
        if self.verdict.first is None:
            for number, name in record.named:
                if self._foreseen is None:
                    self._names[number].later.append(name)
            instance.replayed.flights.popleft()
            result = result_of(record, instance.flights.popleft())
            ended = endings(instance.scheduler.advance(result, record.now))
        elif self._foreseen is not None:
            while len(instance.flights) > len(instance.recorded.flights):
                columns, plan = instance.replayed.flights.popleft(), instance.flights.popleft()
                result = instance.made_out(plan, columns, self._foreseen, record.seconds)
                ended += endings(instance.scheduler.advance(result, record.now))
        self._endings(record.instance, record.ended, ended)
        self._evictions(record.instance, record.forgotten)

    # -- comparing

    def _forget(self, instance: int, group: int, names: Sequence[bytes]) -> None:
        self._forgotten.append(Forgotten(instance, group, b"".join(name[:MARK_BYTES] for name in names)))

    def _evictions(self, instance: int, recorded: list[Forgotten]) -> None:
        replayed, self._forgotten = self._forgotten, []
        for side, forgotten in enumerate((recorded, replayed)):
            self.verdict.evicted[side] += sum(len(each.marks) for each in forgotten) // MARK_BYTES
        if recorded != replayed:
            self._differ(instance, "eviction", self._evicted(recorded), self._evicted(replayed))

    def _endings(self, instance: int, recorded: list[tuple[str, str]], replayed: list[tuple[str, str]]) -> None:
        for side, ended in enumerate((recorded, replayed)):
            self.verdict.ended[side] += len(ended)
        if recorded != replayed:
            self._differ(instance, "ending", dict(recorded), dict(replayed))

    def _differ(self, number: int, what: str, recorded: Told, replayed: Told) -> None:
        if self.verdict.first is not None:
            return
        instance = self._instances[number]
        keys = list(dict.fromkeys((*recorded, *replayed)))
        rows = [(key, recorded.get(key, "–"), replayed.get(key, "–")) for key in keys]
        other = tuple(row for row in rows if row[1] != row[2]) or (("order", "another", "another"),)
        self.verdict.first = Difference(
            model=instance.scheduler.kv.model,
            what=what,
            plan=instance.plans,
            seconds=self.verdict.seconds,
            rows=other,
            alike=len(rows) - len(other),
        )

    def _evicted(self, forgotten: list[Forgotten]) -> Told:
        told: Told = {}
        for instance, group, marks in forgotten:
            kv = self._instances[instance].scheduler.kv
            if group == EVERY_GROUP:
                told[f"{kv.model}: everything"] = "forgotten"
                continue
            names = [marks[at : at + MARK_BYTES].hex() for at in range(0, len(marks), MARK_BYTES)]
            key = f"{kv.model}: blocks of {kv.groups[group].name}"
            told[key] = " ".join([told[key], *names] if key in told else names)
        return told

    def _pass(self, now: float) -> None:
        if self._began is None:
            self._began = now
        self.verdict.seconds = max(self.verdict.seconds, now - self._began)


def describe(step: Step | None, columns: Columns | None, ids: dict[int, str], groups: Sequence[str]) -> Told:
    """A plan in words."""
    if step is None or columns is None:
        return {"plan": "nothing to compute"}
    told: Told = {}
    for slot, start, count, samples in zip(*(column.tolist() for column in columns), strict=True):
        sampling = f", samples {samples}" if samples else ""
        tokens = f"token {start}" if count == 1 else f"tokens {start}…{start + count - 1}"
        told[f"{ids.get(slot, slot)}"] = tokens + sampling
    for new in step.entered:
        told[f"{new.id} starts"] = _starts(new)
    for group, packed in zip(groups, step.blocks, strict=True):
        for slot, index, block in columns_of(packed, 3).T.tolist() if packed else ints().tolist():
            key = f"{ids.get(slot, slot)}: blocks of {group}"
            told[key] = f"{told[key]}, {index}→{block}" if key in told else f"{index}→{block}"
    if step.released:
        told["slots released"] = ", ".join(map(str, step.released))
    return told


def _starts(new: Entered) -> str:
    return f"slot {new.slot}, {new.computed} of {new.tokens} tokens cached"


def replay(records: Iterable[Record], changes: Changes | None = None, counting: bool = False) -> Verdict:
    """Replay a recording up to the first difference, or to its end with `counting` (which reads it twice).

    Raises `InferenceError` for a recording of another version, one that contradicts itself, and changes it cannot have.
    """
    made: Replay | None = None
    foreseen = foresee(records) if counting else None
    for record in records:
        if made is None:
            if not isinstance(record, Opened):
                raise invalid("the recording does not say what was recorded", param="file")
            made = Replay(record, changes or Changes(), foreseen)
            continue
        made.feed(record)
        if made.verdict.first is not None and not counting:
            break
    return made.verdict if made is not None else Verdict()
