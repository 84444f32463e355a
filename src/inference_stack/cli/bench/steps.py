"""Step samples of a real engine: what each step computed and how long it took, under loads that vary everything.

Runs an engine in this process as a worker does. The same loads are played several times, so that each step's time is seen in
several moments of a busy machine. What is learnt from the samples is `simulator.cost`'s business.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from inference_stack.config.tree import Config
from inference_stack.core.errors import InferenceError, invalid
from inference_stack.core.request import Continuation, Request, SamplingParams
from inference_stack.core.seams import Clock, InFlightStep, Runner, SystemClock
from inference_stack.core.step import StepPlan, StepResult
from inference_stack.engine.core import EngineCore
from inference_stack.engine.startup import Startup
from inference_stack.engine.worker import tune_collector
from inference_stack.simulator.cost.samples import StepSample, sizes_of, write_samples
from inference_stack.telemetry.startup import Account
from inference_stack.wire.messages import Ready

BURSTS = ((32, 8), (1, 1000), (12, 30), (4, 250), (20, 60), (2, 400), (6, 16), (8, 120), (1, 20))
"""(requests, tokens of a prompt, about) of bursts, in turns. Few and long beside many and short keeps the price of a row apart from
that of its context. While answers end, decode passes through all smaller batches."""
CHAT_TOKENS = 800
"""Prompt tokens of one load of chats, about: loads that are short are many."""


class Planned(NamedTuple):
    """A request of a load: it comes before the load's step number `at`, with so many tokens in its prompt and its answer."""

    at: int
    prompt: int
    output: int


Load = tuple[Planned, ...]
Loads = Callable[[random.Random, int], Iterator[Load]]
"""Endless loads, given noise and the longest sequence in tokens."""


def bursts(noise: random.Random, longest: int) -> Iterator[Load]:
    """All requests at once: steps of many prompts, then decode with ever fewer rows."""
    for count, tokens in cycle(BURSTS):
        prompts = [min(round(tokens * noise.uniform(0.5, 1.5)), round(longest * 0.8)) for _ in range(count)]
        yield tuple(Planned(0, prompt, noise.randrange(4, 24)) for prompt in prompts)


def chats(noise: random.Random, longest: int) -> Iterator[Load]:
    """Requests one after another while earlier ones decode, log-normal lengths: what a server sees."""
    while True:
        pace, at, tokens, load = noise.choice((2, 4, 8)), 0, 0, list[Planned]()
        while tokens < CHAT_TOKENS:
            prompt = min(round(noise.lognormvariate(4.5, 1.0)) + 4, round(longest * 0.8))
            load.append(Planned(at, prompt, noise.randrange(8, 48)))
            at += noise.randrange(2 * pace)
            tokens += prompt
        yield tuple(load)


class Watched:
    """A runner that notes the sizes and the time of each step it passes on."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.samples: list[StepSample] = []

    def launch(self, plan: StepPlan) -> InFlightStep:
        """Start a step."""
        sizes = sizes_of(plan.start, plan.num_tokens)
        return _WatchedStep(self._runner.launch(plan), sizes, self.samples)


class _WatchedStep:
    def __init__(self, step: InFlightStep, sizes: tuple[int, int, int, int], samples: list[StepSample]) -> None:
        self._step = step
        self._sizes = sizes
        self._samples = samples

    def wait(self) -> StepResult:
        """The result, noted."""
        result = self._step.wait()
        self._samples.append(StepSample(*self._sizes, result.seconds))
        return result


class StepBench:
    """An engine with one model, played loads to."""

    def __init__(self, core: EngineCore, ready: Ready, clock: Clock, seed: int) -> None:
        if len(core.instances) != 1:
            raise invalid(f"steps are measured of one model at a time, not of {len(core.instances)}", param="models")
        self._core = core
        self._clock = clock
        self._noise = random.Random(seed)
        self._info = ready.models[0]
        self._played = 0
        (instance,) = core.instances
        self._watched = Watched(instance.runner)
        instance.runner = self._watched

    def collect(self, kinds: Sequence[Loads], seconds: float, rounds: int, least: int) -> list[list[StepSample]]:
        """Samples by kind of load. As many different loads as fit into a share of the time, then the same in each further round.

        On a machine so slow that this would be fewer than `least` distinct steps of a kind, more. Kinds take turns and equal shares
        of the time, so that all of them meet the machine in the same moods.
        """
        endless = [loads(self._noise, self._info.max_model_len) for loads in kinds]
        found: list[list[StepSample]] = [[] for _ in kinds]
        spent = [0.0] * len(kinds)
        self._play(next(endless[0]))
        chosen: list[tuple[int, Load]] = []
        while sum(spent) < seconds / rounds or any(len({each.sizes for each in one}) < least for one in found):
            kind = spent.index(min(spent))
            began = self._clock.now()
            chosen.append((kind, next(endless[kind])))
            found[kind] += self._play(chosen[-1][1])
            spent[kind] += self._clock.now() - began
        for _ in range(rounds - 1):
            for kind, load in chosen:
                found[kind] += self._play(load)
        return found

    def _play(self, load: Load) -> list[StepSample]:
        """Run a load to its end. Raises `InferenceError` when the engine fails a request of it: its steps would mislead."""
        coming, step = deque(sorted(load)), 0
        self._played += 1
        self._watched.samples.clear()
        while coming or self._core.has_work:
            while coming and (coming[0].at <= step or not self._core.has_work):
                self._core.add(self._request(len(coming), coming.popleft()))
            for delta in self._core.step():
                if delta.error is not None:
                    raise InferenceError(delta.error)
            step += 1
        return list(self._watched.samples)

    def _request(self, number: int, planned: Planned) -> Request:
        prompt = tuple(self._noise.randrange(self._info.vocab_size) for _ in range(planned.prompt))
        params = SamplingParams(max_tokens=planned.output, temperature=0.0, ignore_eos=True)
        known = Continuation(prompt=prompt, params=params, seed=number)
        return Request(id=f"steps-{self._played}-{number}", model=self._info.name, continuation=known)


def collect_kinds(
    config: Config, kinds: Sequence[Loads], *, seconds: float = 60.0, rounds: int = 4, seed: int = 1, least: int = 1
) -> list[list[StepSample]]:
    """Measure steps of the configured model for about `seconds`, under several kinds of load in turns; samples of each kind.

    However slow the machine, there are `least` distinct steps of each kind.

    The prefix cache and the inter-token target are off, so that a load's steps have the same sizes in every round. Raises
    `InferenceError` for what cannot be served, and for several models.
    """
    engine = replace(config.engine, prefix_cache=False, itl_target_ms=0.0)
    clock = SystemClock()
    core, ready = Startup(replace(config, engine=engine), clock, Account(clock, clock.now())).run()
    tune_collector()
    return StepBench(core, ready, clock, seed).collect(kinds, seconds, rounds, least)


def collect_steps(
    config: Config,
    output: Path | None = None,
    *,
    loads: Loads = bursts,
    seconds: float = 60.0,
    rounds: int = 4,
    seed: int = 1,
    least: int = 1,
) -> list[StepSample]:
    """Like `collect_kinds`, under one kind of load; also written to `output` as JSON lines."""
    (samples,) = collect_kinds(config, (loads,), seconds=seconds, rounds=rounds, seed=seed, least=least)
    if output is not None:
        write_samples(output, samples)
    return samples
