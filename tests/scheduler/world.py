"""A simulated device for scheduler tests: it executes plans against a memory of what was written where, and trusts nothing.

Every cell of KV memory holds a digest of the whole prefix it was computed from, so a row that reads a wrong, stale or foreign
cell is caught. Steps execute when they retire; what is in flight is known, so a reuse before the fence is caught too. Tokens
are a function of (request, position), so every request's answer is known beforehand.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from inference_stack.core.errors import InferenceError, numerical_fault
from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.request import BLOCK_TOKENS, FinishReason, Request
from inference_stack.core.step import IntArray, NewSlot, StepPlan, StepResult, TokenDelta, TokenLogprob, ints
from inference_stack.kv.manager import KvManager
from inference_stack.kv.slabs import ArenaGeometry, SlabPool
from inference_stack.scheduler.limits import SchedulerLimits
from inference_stack.scheduler.scheduler import Scheduler

EOS = 0
VOCAB = 40
VOID = -7
"""What a cell holds that was computed from a token that does not exist."""


def true_token(request_id: str, position: int) -> int:
    """The token that the model of these tests puts at this position."""
    return crc32(f"{request_id}/{position}".encode()) % VOCAB


def answer(request: Request, longest: int) -> tuple[list[int], FinishReason]:
    """All tokens of the completion, emitted ones included, and why it ends."""
    continuation, params = request.continuation, request.continuation.params
    prompt = len(continuation.prompt)
    limit = min(prompt + params.max_tokens, longest)
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
    tokens: list[int] = []
    while prompt + len(tokens) < limit:
        tokens.append(true_token(request.id, prompt + len(tokens)))
        if tokens[-1] in stops and len(tokens) > params.min_tokens:
            return tokens, FinishReason.STOP
    return tokens, FinishReason.LENGTH


@dataclass
class Incarnation:
    """One stay of a request in the worker's slot tables."""

    new: NewSlot
    tokens: list[int]
    tables: list[dict[int, int]]
    digests: list[int]
    scheduled: int
    released: bool = False
    void: bool = False
    """A row of it was computed from a token that does not exist; the scheduler has to disregard it from then on."""


@dataclass
class InFlight:
    plan: StepPlan
    rows: list[Incarnation]
    touched: dict[tuple[int, int], set[str]]
    """(group, block) → requests whose rows read or write it."""


class FakeProposer:
    """Guesses right with some probability, so that accept counts are random."""

    def __init__(self, model: ModelUnderTest, seed: int) -> None:
        self._model = model
        self._random = random.Random(seed)

    def propose(self, known: Sequence[Sequence[int]], k: IntArray) -> IntArray:
        by_tokens = {id(entry.tokens): entry.id for entry in self._model.scheduler._state.running}
        drafts = np.full((len(known), int(k.max(initial=0))), -1, np.int32)
        for row, (tokens, count) in enumerate(zip(known, k.tolist(), strict=True)):
            for guess in range(self._random.randint(0, count)):
                right = true_token(by_tokens[id(tokens)], len(tokens) + guess)
                drafts[row, guess] = right if self._random.random() < 0.7 else self._random.randrange(VOCAB)
        return drafts


@dataclass
class ModelUnderTest:
    """One instance: the scheduler, what its worker would hold, and what its clients have received."""

    scheduler: Scheduler
    groups: tuple[KvGroupSpec, ...]
    arena: Arena
    random: random.Random
    requests: dict[str, Request] = field(default_factory=dict)
    received: dict[str, list[int]] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)
    faults: float = 0.0
    stalls: float = 0.0
    slots: dict[int, Incarnation] = field(default_factory=dict)
    flights: deque[InFlight] = field(default_factory=deque)
    finishes: dict[str, FinishReason] = field(default_factory=dict)
    hits: int = 0
    accepted: int = 0

    # -- client side

    def submit(self, request: Request, now: float) -> bool:
        """False when it was refused; it must have been too long then."""
        longest = self.scheduler.bounds.longest
        room = 1 if request.continuation.params.max_tokens else 0
        too_long = len(request.continuation.prompt) + room > longest
        try:
            self.scheduler.add(request, now)
        except InferenceError as error:
            assert too_long and error.info.code == "context_length_exceeded"
            return False
        assert not too_long
        self.requests[request.id] = request
        self.received[request.id] = list(request.continuation.emitted)
        self.open.add(request.id)
        return True

    def abort(self, request_id: str) -> None:
        self.scheduler.abort(request_id)
        self.open.discard(request_id)

    def receive(self, deltas: list[TokenDelta], now: float) -> None:
        for delta in deltas:
            self._receive(delta, now)

    def _receive(self, delta: TokenDelta, now: float) -> None:
        assert delta.request_id in self.open, f"news of {delta.request_id} after its end"
        request = self.requests[delta.request_id]
        assert delta.attempt == request.attempt, "news of an older attempt"
        got = self.received[request.id]
        got += delta.tokens
        expected, finish = answer(request, self.scheduler.bounds.longest)
        assert got == expected[: len(got)], f"{request.id}: wrong tokens"
        if request.continuation.params.logprobs is not None:
            assert tuple(logprob.token for logprob in delta.logprobs) == delta.tokens
        if delta.prompt_logprobs is not None:
            assert tuple(item.token for item in delta.prompt_logprobs) == request.continuation.prompt[1:]
        if delta.finish is None:
            return
        self.open.remove(request.id)
        self.finishes[request.id] = delta.finish
        if delta.finish is FinishReason.ERROR:
            assert delta.error is not None
            self._check_error(request, delta.error.code, now)
        else:
            assert (got, delta.finish) == (expected, finish), f"{request.id}: wrong end"

    def _check_error(self, request: Request, code: str | None, now: float) -> None:
        if code == "deadline_exceeded":
            deadlines = [d for d in (request.qos.deadline, request.qos.ttft_deadline) if d is not None]
            assert min(deadlines) <= now, "expired too early"
        else:
            assert code == "numerical_fault" and self.faults > 0.0

    # -- worker side

    def launch(self, plan: StepPlan) -> None:
        """Take a plan as a worker would, checking that it is legal."""
        for slot in plan.released:
            self.slots.pop(slot).released = True
        for new in plan.new:
            self._enter(new)
        for group, delta in enumerate(plan.blocks):
            for slot, index, block in zip(
                delta.slots.tolist(), delta.index.tolist(), delta.blocks.tolist(), strict=True
            ):
                assert index not in self.slots[slot].tables[group], "a block-table entry was overwritten"
                self.slots[slot].tables[group][index] = block
        assert len(set(plan.slots.tolist())) == len(plan.slots), "a slot has two rows"
        assert plan.total_tokens <= self.scheduler.limits.max_batch_tokens
        rows = [self.slots[slot] for slot in plan.slots.tolist()]
        flight = InFlight(plan=plan, rows=rows, touched={})
        for row, incarnation in enumerate(rows):
            self._check_row(flight, row, incarnation)
        self._check_fences(flight)
        self.flights.append(flight)

    def _enter(self, new: NewSlot) -> None:
        old = self.slots.get(new.slot)
        busy = [flight for flight in self.flights if any(row.new.slot == new.slot for row in flight.rows)]
        assert not busy, f"slot {new.slot} was reused while a step in flight has it"
        if old is not None:
            old.released = True
        request = self.requests[new.request_id]
        continuation = request.continuation
        assert new.tokens == continuation.prompt + tuple(self.received[request.id]), "a new slot lacks tokens"
        assert new.prompt_len == len(continuation.prompt) and new.computed < len(new.tokens)
        if continuation.params.prompt_logprobs is not None and not self.received[request.id]:
            assert new.computed == 0, "prompt logprobs need the whole prompt computed"
        self.hits += new.computed
        digests = self._digests(request, list(new.tokens))
        self.slots[new.slot] = Incarnation(new, list(new.tokens), [{} for _ in self.groups], digests, new.computed)

    def _digests(self, request: Request, tokens: list[int]) -> list[int]:
        digest = hash((request.model, request.adapter, request.cache_salt))
        digests = []
        for token in tokens:
            digest = hash((digest, token))
            digests.append(digest)
        return digests

    def _check_row(self, flight: InFlight, row: int, incarnation: Incarnation) -> None:
        plan = flight.plan
        start, count, samples = int(plan.start[row]), int(plan.num_tokens[row]), int(plan.samples[row])
        assert not incarnation.released, "a row of a released slot"
        assert count >= 1 and 0 <= samples <= count
        assert start <= incarnation.scheduled, f"{incarnation.new.request_id}: a gap before position {start}"
        incarnation.scheduled = start + count
        request = self.requests[incarnation.new.request_id]
        end = len(request.continuation.prompt) + max(1, request.continuation.params.max_tokens)
        assert start + count < end or (start + count == end and samples == 0), "scheduled beyond max_tokens"
        for group, spec in enumerate(self.groups):
            first = 0 if spec.window is None else max(0, start - spec.window + 1)
            for index in range(first // BLOCK_TOKENS, (start + count - 1) // BLOCK_TOKENS + 1):
                assert index in incarnation.tables[group], "a row needs a block that was never assigned"
                key = (group, incarnation.tables[group][index])
                flight.touched.setdefault(key, set()).add(incarnation.new.request_id)

    def _check_fences(self, flight: InFlight) -> None:
        """A block that is written belongs to one request, in this step and in every step in flight, on any model."""
        plan = flight.plan
        for row, incarnation in enumerate(flight.rows):
            start, end = int(plan.start[row]), int(plan.start[row] + plan.num_tokens[row])
            me = {incarnation.new.request_id}
            for group in range(len(self.groups)):
                for index in range(start // BLOCK_TOKENS, (end - 1) // BLOCK_TOKENS + 1):
                    key = (group, incarnation.tables[group][index])
                    for other in (flight, *self.flights):
                        assert other.touched.get(key, me) == me, f"block {key} is written while another uses it"
                    self.arena.check_slab(self, *key)

    def retire(self, now: float) -> list[TokenDelta]:
        """Execute the oldest step in flight and hand its result to the scheduler."""
        flight = self.flights.popleft()
        plan = flight.plan
        width = max(1, int(plan.samples.max(initial=1)))
        tokens = np.full((len(flight.rows), width), -1, np.int32)
        result = StepResult(step=plan.step, model=plan.model, tokens=tokens, counts=ints(np.zeros(len(flight.rows))))
        for row, incarnation in enumerate(flight.rows):
            self._execute(flight, row, incarnation, result)
        deltas = self.scheduler.advance(result, now)
        self.receive(deltas, now)
        return deltas

    def _execute(self, flight: InFlight, row: int, incarnation: Incarnation, result: StepResult) -> None:
        plan = flight.plan
        start, count, samples = int(plan.start[row]), int(plan.num_tokens[row]), int(plan.samples[row])
        live = incarnation.new.request_id in self.open and not incarnation.released and not incarnation.void
        if live:
            self._verify_context(incarnation, start)
        request = self.requests[incarnation.new.request_id]
        drafts = plan.drafts[row][: samples - 1].tolist() if plan.drafts is not None and samples > 1 else []
        inputs = incarnation.tokens[: start + count] + drafts
        sound = len(inputs) >= start + count
        incarnation.void |= not sound
        self._write(incarnation, start, count, self._digests(request, inputs[: start + count]) if sound else [])
        self._prompt_logprobs(row, incarnation, start, count, request, result)
        if samples and self.random.random() < self.faults:
            result.errors[row] = numerical_fault()
        elif samples and not (live and self.random.random() < self.stalls):
            self._sample(row, incarnation, start + count - samples + 1, drafts, samples, result)

    def _verify_context(self, incarnation: Incarnation, start: int) -> None:
        for group, spec in enumerate(self.groups):
            first = 0 if spec.window is None else max(0, start - spec.window + 1)
            for index in range(first // BLOCK_TOKENS, -(-start // BLOCK_TOKENS)):
                low, high = max(first, index * BLOCK_TOKENS), min(start, (index + 1) * BLOCK_TOKENS)
                cells = self.arena.read(self, group, incarnation.tables[group][index])
                got = cells[low % BLOCK_TOKENS : (high - 1) % BLOCK_TOKENS + 1]
                assert got == incarnation.digests[low:high], (
                    f"{incarnation.new.request_id}: positions {low}…{high - 1} hold something else"
                )

    def _write(self, incarnation: Incarnation, start: int, count: int, digests: list[int]) -> None:
        for group in range(len(self.groups)):
            for position in range(start, start + count):
                block = incarnation.tables[group][position // BLOCK_TOKENS]
                digest = digests[position] if digests else VOID
                self.arena.write(self, group, block, position % BLOCK_TOKENS, digest)

    def _prompt_logprobs(
        self, row: int, incarnation: Incarnation, start: int, count: int, request: Request, result: StepResult
    ) -> None:
        if request.continuation.params.prompt_logprobs is not None:
            prompt = request.continuation.prompt
            result.prompt_logprobs[row] = tuple(
                TokenLogprob(token=prompt[place], logprob=-1.0, rank=1)
                for place in range(start + 1, min(start + count + 1, len(prompt)))
            )

    def _sample(
        self, row: int, incarnation: Incarnation, position: int, drafts: list[int], samples: int, result: StepResult
    ) -> None:
        """Sample from `position` on; with drafts, go on as long as they agree."""
        request = self.requests[incarnation.new.request_id]
        sampled: list[int] = []
        while len(sampled) < samples:
            sampled.append(true_token(request.id, position + len(sampled)))
            if len(sampled) > len(drafts) or drafts[len(sampled) - 1] != sampled[-1]:
                break
        self.accepted += len(sampled) - 1
        result.tokens[row, : len(sampled)] = sampled
        result.counts[row] = len(sampled)
        if position == len(incarnation.tokens):
            incarnation.tokens += sampled
            incarnation.digests = self._digests(request, incarnation.tokens)
        if request.continuation.params.logprobs is not None:
            result.logprobs[row] = tuple(TokenLogprob(token=token, logprob=-1.0, rank=1) for token in sampled)


class Arena:
    """Simulated memory of all models: what each cell holds, by slab; a slab's content dies when its owner changes."""

    def __init__(self, slabs: SlabPool) -> None:
        self.slabs = slabs
        self.models: list[ModelUnderTest] = []
        self._cells: dict[int, tuple[object, dict[int, list[int]]]] = {}

    def write(self, model: ModelUnderTest, group: int, block: int, offset: int, digest: int) -> None:
        cells = self._slab(model, group, block).setdefault(block, [VOID] * BLOCK_TOKENS)
        cells[offset] = digest

    def read(self, model: ModelUnderTest, group: int, block: int) -> list[int]:
        return self._slab(model, group, block).get(block, [VOID] * BLOCK_TOKENS)

    def check_slab(self, model: ModelUnderTest, group: int, block: int) -> None:
        """Nothing in flight of another pool touches the slab."""
        slab = self._slab_of(model, group, block)
        for other in self.models:
            for flight in other.flights:
                for other_group, other_block in flight.touched:
                    same_pool = other is model and other_group == group
                    clash = not same_pool and self._slab_of(other, other_group, other_block) == slab
                    assert not clash, f"slab {slab} changed hands while a step in flight uses it"

    def _slab_of(self, model: ModelUnderTest, group: int, block: int) -> int:
        return block // model.scheduler.kv.pools[group].blocks_per_slab

    def _slab(self, model: ModelUnderTest, group: int, block: int) -> dict[int, list[int]]:
        slab = self._slab_of(model, group, block)
        key = (id(model), group)
        if self._cells.get(slab, (None,))[0] != key:
            self._cells[slab] = (key, {})
        return self._cells[slab][1]


def spec(name: str = "full", *, window: int | None = None, heads: int = 1, layers: int = 1) -> KvGroupSpec:
    return KvGroupSpec(name=name, layers=tuple(range(layers)), kv_heads=heads, head_dim=1, window=window)


@dataclass
class World:
    """One or two models over one arena, driven step by step on a clock that only tests move."""

    models: list[ModelUnderTest]
    slabs: SlabPool
    lag: int
    now: float = 0.0
    idle_rounds: int = 0

    @classmethod
    def build(
        cls,
        groups: list[tuple[KvGroupSpec, ...]],
        *,
        slab_count: int,
        blocks_per_slab: int = 2,
        lag: int = 0,
        seed: int = 0,
        max_running: int = 4,
        max_batch_tokens: int = 40,
        max_model_len: int = 400,
        max_drafts: int = 0,
        faults: float = 0.0,
        stalls: float = 0.0,
        prefix_cache: bool = True,
        itl_target: float | None = None,
    ) -> World:
        largest = max(spec.block_bytes for specs in groups for spec in specs)
        slabs = SlabPool(ArenaGeometry(slab_bytes=largest * blocks_per_slab, slab_count=slab_count))
        arena = Arena(slabs)
        limits = SchedulerLimits(
            max_running=max_running,
            max_batch_tokens=max_batch_tokens,
            max_model_len=max_model_len,
            eos_tokens=(EOS,),
            max_drafts=max_drafts,
            itl_target=itl_target,
        )
        for number, specs in enumerate(groups):
            kv = KvManager(f"m{number}", specs, slabs, prefix_cache=prefix_cache, events_capacity=64)
            model = ModelUnderTest(Scheduler(limits, kv), specs, arena, random.Random(seed + number))
            model.faults, model.stalls = faults, stalls
            if max_drafts:
                model.scheduler = Scheduler(limits, kv, proposer=FakeProposer(model, seed))
            arena.models.append(model)
        return cls(arena.models, slabs, lag)

    def step(self, model: ModelUnderTest, check: bool = True) -> None:
        """Plan once, retire when the pipeline is full or nothing can be planned, and verify every invariant."""
        model.receive(model.scheduler.drain_deltas(), self.now)
        plan = model.scheduler.plan(self.now)
        model.receive(model.scheduler.drain_deltas(), self.now)
        if plan is not None:
            model.launch(plan)
        progressed = plan is not None
        if check:
            model.scheduler.check()
        if model.flights and (plan is None or len(model.flights) > self.lag):
            model.retire(self.now)
            progressed = True
            if check:
                model.scheduler.check()
        self.idle_rounds = 0 if progressed else self.idle_rounds + 1

    def drain(self, max_steps: int) -> int:
        """Run until nothing is left; fails when it takes longer than `max_steps` or stands still."""
        steps = 0
        while any(model.scheduler.has_work for model in self.models):
            for model in self.models:
                self.step(model)
            steps += 1
            assert steps <= max_steps, "starvation: requests are still open"
            assert self.idle_rounds <= 4 * len(self.models), "deadlock: nothing is planned and nothing is in flight"
        return steps

    def check_empty(self) -> None:
        """Every request has ended, and nothing but cached content holds memory."""
        for model in self.models:
            assert not model.open, "a request was never finished"
            model.scheduler.check()
            usage = model.scheduler.kv.usage()
            assert (usage.used, usage.fenced) == (0, 0), "blocks leaked"
            assert model.scheduler._state.table.free == model.scheduler.limits.max_running, "slots leaked"
            assert not model.scheduler._state.leaders, "prefix leaders leaked"
