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
from inference_stack.gateway.progress import Progress
from inference_stack.gateway.replies import Usage, usage_of
from inference_stack.gateway.resume import Position
from inference_stack.telemetry.account import Account

Sink = Callable[[Choice, Piece], None]
Over = Callable[[Exception | None], None]


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
    progress: Progress | None = None
    choices: list[Choice] = field(default_factory=list)

    @property
    def resumed(self) -> bool:
        """Whether its stream broke off, and goes on."""
        return self.progress is not None and self.progress.resumed

    @property
    def ended(self) -> dict[int, Position]:
        """The choices that ended before the stream broke off, by index; they are not among `choices`."""
        return {} if self.progress is None else self.progress.ended

    def usage(self) -> Usage:
        """What was used so far, by all connections of the stream. A prompt's cached tokens are its first choice's."""
        cached = {choice.index: choice.cached_tokens for choice in self.choices}
        cached |= {index: position.cached_tokens for index, position in self.ended.items()}
        completion = sum(choice.completion_tokens for choice in self.choices)
        completion += sum(position.offset for position in self.ended.values())
        firsts = (cached.get(index) or 0 for index in range(0, len(self.prompts) * self.n, self.n))
        return usage_of(sum(map(len, self.prompts)), completion, sum(firsts))

    def scored(self, choice: Choice) -> tuple[TokenLogprob, ...]:
        """The log-probabilities of a choice's prompt. One choice of each prompt has them for all; in a stream, where choices
        are shown as they come, each has its own."""
        scorer = choice if self.stream else self.choices[choice.index - choice.index % self.n]
        return scorer.prompt_logprobs

    def abort(self) -> None:
        """Stop whatever still runs, at once."""
        for choice in self.choices:
            choice.abort()


def check_size(gateway: Gateway, model: ModelInfo, prompts: int, n: int, accepted: bool) -> None:
    """Refuse more choices than one request may have, or than can be accepted now: before the work of tokenising. What was
    `accepted` already, in an earlier connection, does not queue again."""
    allowed = gateway.config.max_choices
    if prompts * n > allowed:
        message = f"Invalid 'n': {prompts} prompt(s) times {n} completions is more than the {allowed} choices allowed."
        raise invalid(message, param="n", code="integer_above_max_value")
    if not accepted:
        gateway.dispatch.admit(model.name, prompts * n)


class Running:
    """A job that was started: its choices report here, and it ends once. Deadlines are kept on the way."""

    def __init__(self, gateway: Gateway, job: Job, sink: Sink, over: Over) -> None:
        self._gateway = gateway
        self._job = job
        self._sink = sink
        self._over = over
        self._left = 0
        self._waiting = True
        self._ended = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Hand every choice to the dispatcher. Raises `InferenceError` when it refuses; then nothing is left running."""
        gateway, job = self._gateway, self._job
        indexes = [index for index in range(len(job.prompts) * job.n) if index not in job.ended]
        self._left = len(indexes)
        qos = job.qos
        self._set_timer(min((d for d in (qos.deadline, qos.ttft_deadline) if d is not None), default=None))
        try:
            for index in indexes:
                choice = _choice(gateway, job, index)
                job.choices.append(choice)
                choice.start(gateway.dispatch, self._news, self._choice_over)
        except BaseException:
            self.stop()
            raise
        if not indexes:
            self._end(None)

    def stop(self) -> None:
        """However it ends, nothing is left running. Idempotent."""
        self._ended = True
        self._set_timer(None)
        self._job.abort()

    def _news(self, choice: Choice, piece: Piece) -> None:
        if self._waiting:
            self._waiting = False
            self._set_timer(self._job.qos.deadline)
        self._sink(choice, piece)

    def _choice_over(self, choice: Choice, problem: Exception | None) -> None:
        self._left -= 1
        if problem is not None or not self._left:
            self._end(problem)

    def _end(self, problem: Exception | None) -> None:
        if not self._ended:
            self.stop()
            self._over(problem)

    def _set_timer(self, deadline: float | None) -> None:
        """`deadline` is the gateway clock's."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            seconds = deadline - self._gateway.clock.now()
            late = InferenceError(deadline_exceeded())
            self._timer = asyncio.get_running_loop().call_later(max(seconds, 0.0), self._end, late)


def submit(gateway: Gateway, job: Job, sink: Sink, over: Over) -> Running:
    """Start a job: `sink` is fed until every choice has ended, then `over` is called; or as soon as one fails, with its problem.
    Raises `InferenceError` when it is refused."""
    gateway.refuse_when_draining()
    if job.resumed:
        job.qos = replace(job.qos, ttft_deadline=None)  # its client has seen the first token
    else:
        gateway.dispatch.admit(job.model.name, len(job.prompts) * job.n)
    running = Running(gateway, job, sink, over)
    running.start()
    return running


def _choice(gateway: Gateway, job: Job, index: int) -> Choice:
    prompt_index, number = divmod(index, job.n)
    prompt = job.prompts[prompt_index]
    params = job.params if number == 0 or job.stream else replace(job.params, prompt_logprobs=None)
    progress = job.progress
    request = Request(
        id=f"{job.id}-{index}",
        model=job.model.name,
        continuation=Continuation(prompt=prompt, params=params, seed=job.seeds[prompt_index], choice=number),
        qos=job.qos,
        arrival=job.arrival,
        attempt=0 if progress is None else progress.attempt,
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
        resumed=job.resumed,
    )
    text = TextAssembler(job.frontend.tokenizer, prompt, job.options, offset=len(job.echoes[prompt_index]))
    choice = Choice(index, prompt_index, request, text, job.limit, account)
    if progress is not None:
        choice.follow(progress.marks[index], progress.replay(index))
    return choice
