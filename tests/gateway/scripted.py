"""A dispatcher that plays scripts: deterministic tokens through a real tokenizer, and every way in which an engine can end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from inference_stack.core.errors import ErrorInfo, InferenceError, model_not_found
from inference_stack.core.fleet import ModelInfo, NodeState, WorkerState
from inference_stack.core.request import FinishReason, Request
from inference_stack.core.stats import InstanceStats
from inference_stack.core.step import TokenDelta, TokenLogprob
from inference_stack.gateway.api import Sink, Ticket
from inference_stack.telemetry.metrics import Metrics

WORKER = WorkerState(pid=4711, device="cpu:0", state="ready", restarts=2)


@dataclass
class Script:
    """What the engine does with each request. `delta_tokens` are sent at once; `hold_after` tokens the engine waits for `go`."""

    answers: list[list[int]]
    delta_tokens: int = 1
    hold_after: int | None = None
    go: asyncio.Event = field(default_factory=asyncio.Event)
    error_after: int | None = None
    error: ErrorInfo | None = None
    crash_after: int | None = None
    cached: int = 3


class ScriptedStream:
    """One request's stream."""

    def __init__(self, owner: ScriptedDispatch, request: Request) -> None:
        self.owner = owner
        self.request = request
        self.aborted = asyncio.Event()
        self.ended = False
        self.hint = b"node"

    def abort(self) -> None:
        if not self.ended:
            self.aborted.set()
            self.owner.aborted.append(self.request.id)

    async def play(self, sink: Sink) -> None:
        """Feed `sink` until the end or until nobody wants more."""
        async for delta in self._deltas():
            if self.aborted.is_set():
                return
            sink(delta)

    async def _deltas(self) -> AsyncIterator[TokenDelta]:
        script, count = self.owner.script, 0
        yield self._delta(cached_tokens=script.cached, prompt_logprobs=self._prompt_logprobs())
        tokens, finish = self._plan()
        while count < len(tokens) or not tokens:
            problem = await self._wait(count)
            if problem is not None:
                self.ended = True
                yield self._delta(finish=FinishReason.ERROR, error=problem)
                return
            if script.crash_after is not None and count >= script.crash_after:
                yield self._delta(tokens=("no token",))  # what decodes it cannot know what to do
                return
            step = tokens[count : count + script.delta_tokens]
            count += len(step)
            self.ended = count >= len(tokens)
            self.owner.emitted += len(step)
            finished = finish if self.ended else None
            yield self._delta(tokens=tuple(step), logprobs=self._logprobs(step), finish=finished)
            if self.ended:
                return
            await asyncio.sleep(0)

    async def _wait(self, count: int) -> ErrorInfo | None:
        script = self.owner.script
        if script.hold_after is not None and count >= script.hold_after:
            self.owner.holding.set()
            await script.go.wait()
        return script.error if script.error_after is not None and count >= script.error_after else None

    def _plan(self) -> tuple[list[int], FinishReason]:
        known = self.request.continuation
        answers = self.owner.script.answers
        answer = list(answers[(known.seed + known.choice) % len(answers)])
        ends = False
        for position, token in enumerate(answer):
            ends = token in known.params.stop_token_ids or (
                token in self.owner.model.eos_tokens and not known.params.ignore_eos
            )
            if ends:
                answer = answer[: position + 1]
                break
        if len(answer) > known.params.max_tokens or not ends:
            return answer[: known.params.max_tokens], FinishReason.LENGTH
        return answer, FinishReason.STOP

    def _delta(self, **fields: object) -> TokenDelta:
        return TokenDelta(request_id=self.request.id, **fields)  # type: ignore[arg-type]

    def _logprobs(self, tokens: list[int]) -> tuple[TokenLogprob, ...]:
        wanted = self.request.continuation.params.logprobs
        return () if wanted is None else tuple(entry(token, wanted) for token in tokens)

    def _prompt_logprobs(self) -> tuple[TokenLogprob, ...] | None:
        wanted = self.request.continuation.params.prompt_logprobs
        return None if wanted is None else tuple(entry(token, wanted) for token in self.request.continuation.prompt[1:])


def entry(token: int, alternatives: int) -> TokenLogprob:
    """A logprob that is a function of the token: the token is the likeliest, its neighbours come after it."""
    top = tuple((token + distance, -(token % 7) / 8 - distance) for distance in range(alternatives))
    return TokenLogprob(token=token, logprob=-(token % 7) / 8, rank=1, top=top)


class ScriptedDispatch:
    """Implements `gateway.api.Dispatch`."""

    def __init__(self, model: ModelInfo, script: Script, metrics: Metrics) -> None:
        self.model = model
        self.script = script
        self.metrics = metrics
        self.requests: list[Request] = []
        self.streams: list[ScriptedStream] = []
        self.aborted: list[str] = []
        self.holders: list[bytes] = []
        self.playing: list[asyncio.Task[None]] = []
        self.news_at = 0.0
        self.emitted = 0
        self.holding = asyncio.Event()
        self.refusal: InferenceError | None = None
        self.submit_refusal: InferenceError | None = None
        self.ready = True

    def models(self) -> dict[str, ModelInfo]:
        return {self.model.name: self.model} if self.ready else {}

    def nodes(self) -> tuple[NodeState, ...]:
        return (NodeState(node="n0", ready=self.ready, models=tuple(self.models().values()), workers=(WORKER,)),)

    def admit(self, model: str, completions: int) -> None:
        if self.refusal is not None:
            raise self.refusal
        if model not in self.models():
            raise model_not_found(model)

    def submit(self, request: Request, sink: Sink, holder: bytes = b"", numerics: str = "") -> Ticket:
        if self.submit_refusal is not None:
            raise self.submit_refusal
        self.requests.append(request)
        self.holders.append(holder)
        self.metrics.observe_instance(InstanceStats(model=self.model.name, running=1, kv_blocks_total=8))
        stream = ScriptedStream(self, request)
        self.streams.append(stream)
        self.playing.append(asyncio.create_task(stream.play(sink)))
        return stream

    def settled(self) -> bool:
        """Whether every stream has ended or was aborted."""
        return all(stream.ended or stream.aborted.is_set() for stream in self.streams)
