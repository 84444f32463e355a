"""One model instance on virtual time: the production scheduler and KV bookkeeping, before a device that only takes time.

    submit ─▶ scheduler ─plan▶ device (cost model) ─result, seconds later▶ scheduler ─deltas▶ news
    quiet stretch: the times of many steps are computed at once; whoever disturbs it makes it land first

The loop is the worker's: plans run ahead of results by `depth`, and messages are looked at between steps. Tokens are a function of
seed and position, so what a stream should say is known to whoever knows the request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from inference_stack.core.errors import InferenceError
from inference_stack.core.request import FinishReason, Request
from inference_stack.core.stats import InstanceStats
from inference_stack.core.step import IntArray, StepPlan, StepResult, TokenDelta
from inference_stack.scheduler.scheduler import Scheduler
from inference_stack.simulator.api import CostModel
from inference_stack.simulator.cost.samples import sizes_of
from inference_stack.simulator.loop import Loop, Timer
from inference_stack.simulator.tokens import answer_key, tokens_at

SHORTEST_LEAP, LONGEST_LEAP = 3, 256
"""In steps. Shorter ones are no cheaper than stepping; of longer ones, much would be computed in vain when something disturbs."""

Times = npt.NDArray[np.float64]


class News(Protocol):
    """Who is told what an instance emits."""

    def deltas(self, deltas: Sequence[TokenDelta], now: float) -> None:
        """What one step came to."""
        ...

    def leapt(self, ids: Sequence[str], tokens_RK: IntArray, times: Times) -> None:
        """One token for each of these requests at each of these times."""
        ...


@dataclass(slots=True)
class _Flight:
    """A step on its way through the device: what its result will be made of."""

    step: int
    slots: IntArray
    start: IntArray
    num_tokens: IntArray
    samples: IntArray
    seconds: float
    finish: float

    @property
    def context(self) -> int:
        """Tokens of KV that its rows see."""
        return int(self.start.sum()) + int(self.num_tokens.sum())


@dataclass(slots=True)
class _Leap:
    """Results that will come at `times`, `seconds` after one another, if nothing disturbs; at most `most` of them in this leap."""

    times: Times
    seconds: list[float]
    most: int
    timer: Timer


class Instance:
    """A scheduler with its device. `depth` is how far plans run ahead; without `leaping` quiet stretches are stepped through."""

    def __init__(
        self,
        scheduler: Scheduler,
        cost: CostModel,
        loop: Loop,
        news: News,
        vocab_size: int,
        depth: int,
        leaping: bool = True,
    ) -> None:
        self.scheduler = scheduler
        self.slowness = 1.0
        self.busy_seconds = 0.0
        self._cost = cost
        self._loop = loop
        self._news = news
        self._vocab_size = vocab_size
        self._depth = depth
        self._leaping = leaping
        self._keys = np.zeros(scheduler.limits.max_running, np.uint64)
        self._flights: deque[_Flight] = deque()
        self._leap: _Leap | None = None
        self._timer: Timer | None = None
        self._stopped = False

    # -- from outside

    def land(self) -> None:
        """End a leap, for someone who is about to change something: `submit` or `abort` has to follow."""
        self._land()

    def submit(self, requests: Iterable[Request]) -> None:
        """Requests arrive. One that can never run is told so at once."""
        self._land()
        now = self._loop.now()
        for request in requests:
            try:
                self.scheduler.add(request, now)
            except InferenceError as error:
                failed = TokenDelta(request.id, request.attempt, finish=FinishReason.ERROR, error=error.info)
                self._news.deltas([failed], now)
        self._wake()

    def abort(self, request_ids: Iterable[str]) -> None:
        """Nobody wants these any more."""
        self._land()
        for request_id in request_ids:
            self.scheduler.abort(request_id)
        self._wake()

    def set_slowness(self, slowness: float) -> None:
        """From the next step on, everything takes this many times as long."""
        self._land()
        self.slowness = slowness
        self._wake()

    def hang(self) -> None:
        """Nothing happens any more until `resume`."""
        self._land()
        self._stopped = True
        self._rest()

    def resume(self) -> None:
        """Go on; what was being computed begins anew."""
        self._stopped = False
        finish = self._loop.now()
        for flight in self._flights:
            flight.finish = finish = finish + flight.seconds
        self._wake()

    def stop(self) -> None:
        """The process is gone, and all that it held."""
        self._land()
        self._stopped = True
        self._rest()
        self._flights.clear()

    def settle(self) -> None:
        """Bring the bookkeeping up to now, for someone who wants to look at it."""
        self._land()
        self._wake()

    @property
    def retiring(self) -> bool:
        """Whether nobody asks for anything any more, and steps are still on their way."""
        return bool(self._flights) and not self.scheduler.request_ids()

    def stats(self) -> InstanceStats:
        """The instance's numbers as of its last step."""
        return self.scheduler.stats()

    # -- the loop of the worker

    def _wake(self) -> None:
        """Wait for the oldest step, or begin one when there is none."""
        if self._stopped or self._timer is not None or self._leap is not None:
            return
        if self._flights:
            self._await()
        elif self.scheduler.has_work:
            self._iterate()

    def _iterate(self) -> None:
        """Plan as far ahead as the depth allows, then wait for the oldest step."""
        while True:
            plan = self.scheduler.plan(self._loop.now())
            if plan is not None:
                self._launch(plan)
            deltas = self.scheduler.drain_deltas()
            if deltas:
                self._news.deltas(deltas, self._loop.now())
            if plan is None or len(self._flights) > self._depth:
                break
        if self._flights:
            self._await()
        elif self.scheduler.next_deadline < np.inf:
            self._timer = self._loop.at(self.scheduler.next_deadline, self._retry)

    def _rest(self) -> None:
        """Wait for nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _retry(self) -> None:
        self._timer = None
        self._wake()

    def _launch(self, plan: StepPlan) -> None:
        for new in plan.new:
            self._keys[new.slot] = answer_key(new.seed)
        seconds = self._cost.step_seconds(*sizes_of(plan.start, plan.num_tokens)) * self.slowness
        begin = max(self._loop.now(), self._flights[-1].finish if self._flights else 0.0)
        self._flights.append(
            _Flight(plan.step, plan.slots, plan.start, plan.num_tokens, plan.samples, seconds, begin + seconds)
        )

    def _await(self) -> None:
        quiet = self.scheduler.quiet_steps(LONGEST_LEAP) if self._leaping else 0
        if quiet >= SHORTEST_LEAP:
            self._begin_leap(quiet)
        if self._leap is None:
            self._timer = self._loop.at(self._flights[0].finish, self._retire)

    def _retire(self) -> None:
        """The oldest step's result has come."""
        self._timer = None
        flight = self._flights.popleft()
        self.busy_seconds += flight.seconds
        now = self._loop.now()
        deltas = self.scheduler.advance(self._result(flight), now)
        if deltas:
            self._news.deltas(deltas, now)
        self._iterate()

    def _result(self, flight: _Flight) -> StepResult:
        sampled = flight.samples > 0
        tokens = tokens_at(self._keys[flight.slots], flight.start + flight.num_tokens, self._vocab_size)
        return StepResult(
            step=flight.step,
            model=self.scheduler.kv.model,
            tokens=np.where(sampled, tokens, -1).astype(np.int32)[:, None],
            counts=sampled.astype(np.int32),
            seconds=flight.seconds,
        )

    # -- leaps

    def _begin_leap(self, quiet: int) -> None:
        """Find out when the next results would come, as far as no deadline passes."""
        rows = len(self._flights[0].slots)
        context = self._flights[-1].context
        seconds = [flight.seconds for flight in self._flights]
        for ahead in range(1, quiet + 1):
            seen = context + ahead * rows
            seconds.append(self._cost.step_seconds(rows, rows, seen, seen) * self.slowness)
        finish = self._flights[0].finish
        times = finish + np.concatenate(([0.0], np.cumsum(seconds[1:])))
        steps = min(quiet, int(np.searchsorted(times, self.scheduler.next_deadline)))
        if steps < SHORTEST_LEAP:
            return
        timer = self._loop.at(float(times[steps - 1]), self._touch_down)
        self._leap = _Leap(times, seconds, steps, timer)

    def _touch_down(self) -> None:
        self._land()
        self._wake()

    def _land(self) -> None:
        """End a leap: the results that have come by now are booked, what is in flight is made out again."""
        leap, self._leap = self._leap, None
        if leap is None:
            return
        leap.timer.cancel()
        now = self._loop.now()
        flight = self._flights[0]
        steps = min(leap.most, int(np.searchsorted(leap.times, now, side="right")))
        if steps:
            positions = (flight.start + 1)[:, None] + np.arange(steps)
            tokens_RK = tokens_at(self._keys[flight.slots][:, None], positions, self._vocab_size)
            ids = self.scheduler.running_ids()
            self.scheduler.leap(tokens_RK, leap.seconds[:steps])
            self.busy_seconds += sum(leap.seconds[:steps])
            self._shift(leap, steps)
            self._news.leapt(ids, tokens_RK, leap.times[:steps])

    def _shift(self, leap: _Leap, steps: int) -> None:
        for place, flight in enumerate(self._flights):
            flight.step += steps
            flight.start = flight.start + steps
            flight.seconds = leap.seconds[steps + place]
            flight.finish = float(leap.times[steps + place])
