"""A runner that computes nothing: a step takes the time that a cost model says, and tokens are a function of seed and position.

    plan ─▶ sizes ─▶ cost model: seconds ─▶ Timeline: begins when the device is free ─▶ wait() sleeps until then ─▶ made-up words

Above it everything is real. So an answer continues after a crash with the same bytes, and load, chaos and soak tests need no GPU.
What a request asks of sampling (temperature, penalties, bias) changes nothing, as there is no distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from inference_stack.core.request import SamplingParams
from inference_stack.core.seams import Clock
from inference_stack.core.step import IntArray, NewSlot, StepPlan, StepResult, TokenLogprob
from inference_stack.engine.words import Words
from inference_stack.simulator.api import CostModel
from inference_stack.simulator.cost.samples import sizes_of
from inference_stack.simulator.tokens import answer_key, derive

LOG_HALF = math.log(0.5)
"""Of a made-up token; each alternative is half as likely as the one before it."""


def stream_key(seed: int, choice: int) -> int:
    """The `answer_key` of one choice of a request: the simulator's own for the first, a stream of its own for each other."""
    return answer_key(derive(seed, choice) if choice else seed)


class Timeline:
    """When a device is free. All models of a device share one: steps run one after another, in the order of their launches."""

    def __init__(self, clock: Clock, sleep: Callable[[float], None]) -> None:
        self._clock = clock
        self._sleep = sleep
        self._free = 0.0

    def take(self, seconds: float) -> float:
        """When a step that is launched now ends, on the clock."""
        self._free = max(self._clock.now(), self._free) + seconds
        return self._free

    def wait(self, until: float) -> None:
        """Sleep until that moment."""
        while (left := until - self._clock.now()) > 0:
            self._sleep(left)


class SimulatedStep:
    """A step whose result is known and whose time has not come."""

    __slots__ = ("_finish", "_result", "_timeline")

    def __init__(self, result: StepResult, timeline: Timeline, finish: float) -> None:
        self._result = result
        self._timeline = timeline
        self._finish = finish

    def wait(self) -> StepResult:
        """The result, when the step has ended."""
        self._timeline.wait(self._finish)
        return self._result


class SimulatedRunner:
    """Runs one model instance by the clock. `slots` is how many requests run at once."""

    def __init__(self, cost: CostModel, words: Words, slots: int, timeline: Timeline) -> None:
        self._cost = cost
        self._words = words
        self._timeline = timeline
        self._keys = np.zeros(slots, np.uint64)
        self._params = [SamplingParams()] * slots
        self._prompts: list[tuple[int, ...]] = [()] * slots
        self._reports = np.zeros(slots, np.bool_)

    def launch(self, plan: StepPlan) -> SimulatedStep:
        """Start a step, behind those launched before it. Raises `ValueError` for drafts: nothing here could accept them."""
        if plan.drafts is not None:
            raise ValueError("the simulated engine does not speculate")
        for new in plan.new:
            self._enter(new)
        seconds = self._cost.step_seconds(*sizes_of(plan.start, plan.num_tokens))
        finish = self._timeline.take(seconds)
        return SimulatedStep(self._result(plan, seconds), self._timeline, finish)

    def _enter(self, new: NewSlot) -> None:
        self._keys[new.slot] = stream_key(new.seed, new.choice)
        self._params[new.slot] = new.params
        self._prompts[new.slot] = new.tokens[: new.prompt_len] if new.params.prompt_logprobs is not None else ()
        self._reports[new.slot] = new.params.logprobs is not None or new.params.prompt_logprobs is not None

    def _result(self, plan: StepPlan, seconds: float) -> StepResult:
        sampled = plan.samples > 0
        tokens = self._words.at(self._keys[plan.slots], plan.start + plan.num_tokens)
        result = StepResult(
            step=plan.step,
            model=plan.model,
            tokens=np.where(sampled, tokens, -1).astype(np.int32)[:, None],
            counts=sampled.astype(np.int32),
            seconds=seconds,
        )
        for row in self._reports[plan.slots].nonzero()[0].tolist():
            self._report(plan, row, tokens, result)
        return result

    def _report(self, plan: StepPlan, row: int, tokens: IntArray, result: StepResult) -> None:
        """Log-probabilities of a row that asks for them."""
        slot, start = int(plan.slots[row]), int(plan.start[row])
        wanted, prompt = self._params[slot], self._prompts[slot]
        if wanted.logprobs is not None and plan.samples[row]:
            result.logprobs[row] = (self._logprob(int(tokens[row]), wanted.logprobs),)
        scored = prompt[start + 1 : start + int(plan.num_tokens[row]) + 1]
        if wanted.prompt_logprobs is not None and scored:
            result.prompt_logprobs[row] = tuple(self._logprob(token, wanted.prompt_logprobs) for token in scored)

    def _logprob(self, token: int, top: int) -> TokenLogprob:
        likely = [token, *self._words.after(token, top - 1)] if top else []
        listed = tuple((other, LOG_HALF * place) for place, other in enumerate(likely, 1))
        return TokenLogprob(token=token, logprob=LOG_HALF, rank=1, top=listed)
