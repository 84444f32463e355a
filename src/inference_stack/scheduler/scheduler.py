"""The scheduler of one model instance: requests in, plans out, results in, news out.

    add / abort ─▶ ┌───────────┐ ─▶ plan(now)  ─▶ runner ─┐
                   │ Scheduler │                           │  0 to 2 plans later, in order
    deltas      ◀─ └───────────┘ ◀─ advance(result) ◀──────┘

Pure and single-threaded: time is an argument, work is somebody else's. `check()` verifies every invariant.
"""

from __future__ import annotations

from collections.abc import Sequence

from inference_stack.core.errors import deadline_exceeded
from inference_stack.core.request import FinishReason, Request
from inference_stack.core.seams import Proposer
from inference_stack.core.stats import InstanceStats, StepTimeModel
from inference_stack.core.step import IntArray, StepPlan, StepResult, TokenDelta
from inference_stack.kv.manager import KvManager
from inference_stack.policy.ordering import OrderingPolicy, PriorityFcfs
from inference_stack.policy.step_time import StepTimeFit
from inference_stack.scheduler.audit import audit
from inference_stack.scheduler.entry import Bounds, check_request, make_entry
from inference_stack.scheduler.leap import leap, quiet_steps
from inference_stack.scheduler.limits import SchedulerLimits
from inference_stack.scheduler.planner import Planner
from inference_stack.scheduler.results import Results
from inference_stack.scheduler.state import State


class Scheduler:
    """Iteration-level scheduler. `proposer` guesses tokens for speculation; `prior` is believed until steps were timed."""

    def __init__(
        self,
        limits: SchedulerLimits,
        kv: KvManager,
        ordering: OrderingPolicy | None = None,
        *,
        proposer: Proposer | None = None,
        prior: StepTimeModel | None = None,
    ) -> None:
        self.limits = limits
        self.kv = kv
        self._fit = StepTimeFit(prior)
        self._state = State(limits, kv, ordering or PriorityFcfs())
        self._planner = Planner(self._state, self._fit, proposer if limits.max_drafts else None)
        self._results = Results(self._state, self._fit)
        self._arrivals = 0
        self.bounds = Bounds(
            max_model_len=limits.max_model_len,
            max_memory_len=kv.capacity_tokens(limits.max_model_len),
            eos_tokens=limits.eos_tokens,
        )

    # -- requests

    def add(self, request: Request, now: float, names: list[bytes] | None = None) -> None:
        """Queue a request. `names` are its block hashes when `kv.hasher.request_chain` was called elsewhere.

        A known id with a higher attempt replaces the known one; otherwise it is ignored. Raises `InferenceError` for a
        request that can never run: empty, longer than the model's context, larger than the whole KV memory.
        """
        if self._superseded(request):
            return
        check_request(request, self.bounds)
        self._drop(request.id)
        if names is None:
            names = self.kv.hasher.request_chain(request) if self.kv.prefix_cache else []
        self._arrivals += 1
        rank = (self._state.ordering.key(request, now), self._arrivals)
        entry = make_entry(request, self.bounds, rank, self.kv.sequence(names, request.adapter, request.cache_salt))
        finish = entry.finished_before_start()
        if finish is None:
            self._state.enqueue(entry)
            return
        empty = () if entry.prompt_logprobs is not None else None
        self._state.deltas.append(
            TokenDelta(request_id=entry.id, attempt=entry.attempt, prompt_logprobs=empty, finish=finish)
        )

    def abort(self, request_id: str) -> None:
        """Stop a request now; nothing more is reported about it. Unknown ids are ignored: it may just have finished."""
        self._drop(request_id)

    # -- steps

    def plan(self, now: float) -> StepPlan | None:
        """The next step, or None when nothing can be computed before a result arrives or memory is freed elsewhere."""
        self._expire(now)
        return self._planner.plan(now)

    def advance(self, result: StepResult, now: float) -> list[TokenDelta]:
        """Take in the result of the oldest step in flight; returns all news since the last call."""
        self._results.take(result)
        self._expire(now)
        return self._take_deltas()

    def drain_deltas(self) -> list[TokenDelta]:
        """News that did not come from a step: expired deadlines, continuations that were complete already."""
        return self._take_deltas()

    # -- quiet stretches, for simulators: see `scheduler/leap.py`

    def quiet_steps(self, most: int) -> int:
        """How many steps from now on, at most `most`, only add a token to each running request."""
        return quiet_steps(self._state, most)

    def leap(self, tokens_RK: IntArray, seconds: Sequence[float]) -> None:
        """Take that many steps at once. Raises `ValueError` beyond `quiet_steps`."""
        leap(self._state, self._fit, tokens_RK, seconds)

    @property
    def next_deadline(self) -> float:
        """No deadline passes before this; infinity for never."""
        return self._state.next_deadline

    def request_ids(self) -> list[str]:
        """Everything that waits or runs."""
        return list(self._state.entries)

    def running_ids(self) -> list[str]:
        """Running requests, first in order first: the rows of `leap`."""
        return [entry.id for entry in self._state.running]

    # -- views

    @property
    def has_work(self) -> bool:
        """Whether anything waits, runs, is in flight or has to be told."""
        state = self._state
        return bool(state.entries or state.flights or state.deltas)

    @property
    def waiting(self) -> int:
        """Requests that do not run."""
        return len(self._state.waiting)

    @property
    def in_flight(self) -> int:
        """Steps planned whose results have not come."""
        return len(self._state.flights)

    def stats(self) -> InstanceStats:
        """The instance's numbers. Pure: `schedule_seconds` is for whoever holds the clock to fill in."""
        state, counters, usage = self._state, self._state.counters, self.kv.usage()
        return InstanceStats(
            model=self.kv.model,
            running=len(state.running),
            waiting=len(state.waiting),
            kv_blocks_total=usage.total,
            kv_blocks_used=usage.used + usage.fenced,
            kv_blocks_cached=usage.cached,
            steps=counters.steps,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.generation_tokens,
            prefix_queries=counters.prefix_queries,
            prefix_hits=counters.prefix_hits,
            preemptions=counters.preemptions,
            step_seconds=counters.step_seconds,
            step_time=self._fit.model,
        )

    def check(self) -> None:
        """Integrity of everything held here and below. Raises `RuntimeError` with what is wrong."""
        audit(self._state)
        self.kv.check()

    def _superseded(self, request: Request) -> bool:
        """Whether this id is known with the same or a higher attempt: open, or ended and not told yet."""
        entry = self._state.entries.get(request.id)
        told = (delta.attempt for delta in self._state.deltas if delta.request_id == request.id)
        return max(told, default=-1 if entry is None else entry.attempt) >= request.attempt

    def _drop(self, request_id: str) -> None:
        """Nothing of the request remains, news included."""
        entry = self._state.entries.get(request_id)
        if entry is not None:
            self._state.leave(entry)
        if self._state.deltas:
            self._state.deltas = [delta for delta in self._state.deltas if delta.request_id != request_id]

    def _take_deltas(self) -> list[TokenDelta]:
        deltas, self._state.deltas = self._state.deltas, []
        return deltas

    def _expire(self, now: float) -> None:
        """Requests whose deadline has passed end with an error."""
        for entry in self._state.overdue(now):
            self._state.leave(entry)
            self._state.deltas.append(
                TokenDelta(
                    request_id=entry.id,
                    attempt=entry.attempt,
                    finish=FinishReason.ERROR,
                    error=deadline_exceeded(),
                )
            )
