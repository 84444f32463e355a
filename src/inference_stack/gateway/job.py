"""One HTTP request as n completions: submitted together, run together, ended together.

Knows how completions start, fail, expire and stop; not what their answers look like.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from inference_stack.core.errors import InferenceError, deadline_exceeded, invalid
from inference_stack.core.fleet import ModelInfo
from inference_stack.core.request import Continuation, Qos, Request, SamplingParams
from inference_stack.core.step import TokenLogprob
from inference_stack.frontend.completion import TextAssembler, TextOptions
from inference_stack.frontend.load import Frontend
from inference_stack.gateway.choice import Choice, Piece
from inference_stack.gateway.context import Gateway
from inference_stack.gateway.replies import Usage, usage_of
from inference_stack.telemetry.account import Account

Sink = Callable[[Choice, Piece], None]


@dataclass(kw_only=True)
class Job:
    """A validated request. `limit` is the number of tokens a choice may show; `echoes` are the prompts' texts where they are
    to be part of the answer, else empty."""

    id: str
    request_id: str
    created: int
    model: ModelInfo
    frontend: Frontend
    prompts: Sequence[tuple[int, ...]]
    echoes: Sequence[str]
    seeds: Sequence[int]
    n: int
    limit: int
    params: SamplingParams
    options: TextOptions
    qos: Qos
    arrival: float
    stream: bool
    include_usage: bool
    return_token_ids: bool
    choices: list[Choice] = field(default_factory=list)

    def usage(self) -> Usage:
        """What was used so far."""
        cached = {choice.prompt_index: choice.cached_tokens for choice in reversed(self.choices)}
        completion = sum(choice.completion_tokens for choice in self.choices)
        return usage_of(sum(map(len, self.prompts)), completion, sum(cached.values()))

    def scored(self, choice: Choice) -> tuple[TokenLogprob, ...]:
        """The log-probabilities of a choice's prompt. One choice of each prompt has them for all; in a stream, where choices
        are shown as they come, each has its own."""
        scorer = choice if self.stream else self.choices[choice.index - choice.index % self.n]
        return scorer.prompt_logprobs

    def abort(self) -> None:
        """Stop whatever still runs, at once."""
        for choice in self.choices:
            choice.abort()


def check_size(gateway: Gateway, model: ModelInfo, prompts: int, n: int) -> None:
    """Refuse more choices than one request may have, or than can be accepted now: before the work of tokenising."""
    allowed = gateway.config.max_choices
    if prompts * n > allowed:
        message = f"Invalid 'n': {prompts} prompt(s) times {n} completions is more than the {allowed} choices allowed."
        raise invalid(message, param="n", code="integer_above_max_value")
    gateway.dispatch.admit(model.name, prompts * n)


def submit(gateway: Gateway, job: Job) -> None:
    """Hand every choice to the dispatcher. Raises `InferenceError` when it refuses; then nothing is left running."""
    gateway.refuse_when_draining()
    gateway.dispatch.admit(job.model.name, len(job.prompts) * job.n)
    try:
        for index in range(len(job.prompts) * job.n):
            choice = _choice(gateway, job, index)
            job.choices.append(choice)
            choice.stream = gateway.dispatch.submit(choice.request)
    except BaseException:
        job.abort()
        raise


def _choice(gateway: Gateway, job: Job, index: int) -> Choice:
    prompt_index, number = divmod(index, job.n)
    prompt = job.prompts[prompt_index]
    params = job.params if number == 0 or job.stream else replace(job.params, prompt_logprobs=None)
    request = Request(
        id=f"{job.id}-{index}",
        model=job.model.name,
        continuation=Continuation(prompt=prompt, params=params, seed=job.seeds[prompt_index], choice=number),
        qos=job.qos,
        arrival=job.arrival,
    )
    account = Account(
        gateway.metrics,
        gateway.clock,
        gateway.log,
        model=job.model.name,
        request_id=job.request_id,
        completion_id=request.id,
        prompt_tokens=len(prompt),
        arrival=job.arrival,
    )
    text = TextAssembler(job.frontend.tokenizer, prompt, job.options, offset=len(job.echoes[prompt_index]))
    return Choice(index, prompt_index, request, text, job.limit, account)


async def run(gateway: Gateway, job: Job, sink: Sink) -> None:
    """Feed `sink` until every choice has ended. Raises `InferenceError`: of the first choice that fails, or for a
    deadline that passes. However it ends, nothing is left running."""
    loop = asyncio.get_running_loop()

    def at(deadline: float | None) -> float | None:
        return None if deadline is None else loop.time() + deadline - gateway.clock.now()

    first = min((d for d in (job.qos.deadline, job.qos.ttft_deadline) if d is not None), default=None)
    timer = asyncio.timeout_at(at(first))

    def started() -> None:
        if not timer.expired():
            timer.reschedule(at(job.qos.deadline))

    try:
        async with timer:
            await _run_choices(job.choices, _on_first(sink, started))
    except TimeoutError:
        if not timer.expired():
            raise
        raise InferenceError(deadline_exceeded()) from None
    finally:
        job.abort()


def _on_first(sink: Sink, started: Callable[[], None]) -> Sink:
    """`sink`, but `started` is called before the first piece of any choice."""
    waiting = True

    def both(choice: Choice, piece: Piece) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            started()
        sink(choice, piece)

    return both


async def _run_choices(choices: Sequence[Choice], sink: Sink) -> None:
    if len(choices) == 1:
        await choices[0].run(sink)
        return
    tasks = [asyncio.create_task(choice.run(sink)) for choice in choices]
    try:
        await asyncio.gather(*tasks)
    finally:
        for choice in choices:
            choice.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
