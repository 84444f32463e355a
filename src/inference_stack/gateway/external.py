"""An external OpenAI-compatible server as a node: a `Link` whose other end is HTTP, with the promises that such a server can keep.

    gateway ──Submit──▶ ExternalLink ──POST /v1/completions, token ids──▶ server        Abort closes the connection
    gateway ◀─StepReport, Lost, NodeState, Beat─ ExternalLink ◀──server-sent events──   GET /v1/models now and then

Decides nothing about requests but when a server must be left alone. What crosses HTTP is `external_api`'s and `external_http`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Final

from inference_stack.core.errors import SERVER_ERROR, ErrorInfo, InferenceError, invalid, unavailable
from inference_stack.core.fleet import ModelInfo, NodeState
from inference_stack.core.request import FinishReason, Request
from inference_stack.core.seams import Clock, LinkClosed
from inference_stack.core.stats import InstanceStats
from inference_stack.core.step import TokenDelta
from inference_stack.gateway.external_api import (
    LocalModel,
    NoLogprobs,
    NoTokenIds,
    Refusal,
    Reply,
    Unreachable,
    one_token,
    request_body,
    unsupported,
    urgency,
)
from inference_stack.gateway.external_condition import Condition, Refusals
from inference_stack.gateway.external_http import Server
from inference_stack.gateway.external_load import Load
from inference_stack.wire.addresses import is_loopback
from inference_stack.wire.messages import (
    Abort,
    Attach,
    Beat,
    DrainNode,
    FromNode,
    LoadModel,
    Lost,
    StepReport,
    Submit,
    ToNode,
    UnloadModel,
)

log = logging.getLogger(__name__)

SCHEME: Final = "openai:"
CHECK_PAUSE_SECONDS: Final = 2.0
FIRST_TOKEN_SECONDS: Final = 30.0
"""How long the one token of a check may take."""
MOST_REFUSALS: Final = 5
"""Times that one request is refused, without a token in between, until it is failed."""


def is_external(address: str) -> bool:
    """Whether a node's address names an external server."""
    return address.startswith(SCHEME)


@dataclass(frozen=True, kw_only=True)
class ExternalSettings:
    """`places`: completions that a server is taken to run at once; `plain`: allow HTTP without TLS beyond this machine;
    `fail_on_mismatch`: rather fail a stream that broke off than let a server go on with it, which never is sure to do so alike;
    `refusals` outlive links, since a request may be what breaks them."""

    models: Mapping[str, LocalModel]
    key: str = ""
    places: int = 64
    plain: bool = False
    fail_on_mismatch: bool = False
    refusals: Refusals = field(default_factory=Refusals)


async def dial_external(address: str, settings: ExternalSettings, clock: Clock) -> ExternalLink:
    """A link to the server at `openai:URL`. Raises `LinkClosed` while it cannot be reached, `InferenceError` if it must not be."""
    url = address.removeprefix(SCHEME)
    if url.startswith("http://") and not settings.plain and not is_loopback(url.removeprefix("http://").split("/")[0]):
        message = (
            f"{url} is beyond this machine and has no TLS. Use https://, or allow anybody to read with --tls-insecure."
        )
        raise invalid(message, param="tls", code="tls_required")
    server = Server(url, settings.key)
    try:
        await server.models()
    except Unreachable as error:
        await server.close()
        raise LinkClosed(str(error)) from error
    except Refusal:
        pass  # it is there: what is wrong with it is for its state to tell
    except BaseException:
        await server.close()
        raise
    return ExternalLink(server, settings, clock)


@dataclass(eq=False)
class Run:
    """One attempt at a request, under way. `heard` is when it last emitted, or was sent."""

    request: Request
    info: ModelInfo
    heard: float
    began: bool = False
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class ExternalLink:
    """The gateway's end; implements `Link[ToNode, FromNode]`. There is no process at the other: this object answers for it."""

    def __init__(self, server: Server, settings: ExternalSettings, clock: Clock) -> None:
        self._server = server
        self._clock = clock
        self._models = settings.models
        self._fail_on_mismatch = settings.fail_on_mismatch
        self._condition = Condition(server.name, settings.models, settings.places)
        self._loads = {name: Load(name, settings.places) for name in settings.models}
        self._inbox: asyncio.Queue[FromNode | None] = asyncio.Queue()
        self._news: list[TokenDelta] = []
        self._news_at = 0.0
        self._runs: dict[str, Run] = {}
        self._refusals = settings.refusals
        self._told: NodeState | None = None
        self._look = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._drain: asyncio.TimerHandle | None = None
        self._beats = 0
        self._closed = False

    # -- Link

    async def send(self, message: ToNode) -> None:
        """Take an order. Raises `LinkClosed`."""
        if self._closed:
            raise LinkClosed(f"{self._server.name} is gone")
        match message:
            case Attach():
                self._tell()
                self._watcher = self._watcher or asyncio.create_task(self._watch())
            case Submit(requests=requests):
                for request in requests:
                    self._submit(request)
            case Abort(request_ids=request_ids):
                for request_id in request_ids:
                    self._stop(request_id)
            case Beat(number=number):
                self._beats += 1
                self._put(StepReport(deltas=(), stats=self._stats()))
                self._put(Beat(number=self._beats, heard=number))
            case DrainNode(seconds=seconds, undo=undo):
                self._set_drain(None if undo else seconds)
            case LoadModel() | UnloadModel():
                self._condition.remark = "an external server's models are loaded and unloaded at the server itself"
                log.warning("node %s: %s", self._server.name, self._condition.remark)
                self._tell()

    async def receive(self) -> FromNode:
        """The next news. Raises `LinkClosed`."""
        message = await self._inbox.get()
        if message is None:
            self._inbox.put_nowait(None)
            raise LinkClosed(f"{self._server.name} is gone")
        return message

    async def close(self) -> None:
        """End every stream and connection. Idempotent."""
        self._end()
        tasks = [run.task for run in self._runs.values() if run.task] + ([self._watcher] if self._watcher else [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._set_drain(None)
        await self._server.close()

    def _end(self) -> None:
        if not self._closed:
            self._flush()
            self._closed = True
            self._inbox.put_nowait(None)

    # -- requests

    def _submit(self, request: Request) -> None:
        old = self._runs.get(request.id)
        if old is not None and old.request.attempt >= request.attempt:
            return
        self._stop(request.id)
        info = self._condition.served(request.model)
        problem = unsupported(request, info is None or self._condition.gives_logprobs(request.model))
        if problem is not None:
            self._fail(request, problem.info)
        elif info is None:
            self._lose([request.id], f"{self._server.name} does not serve {request.model}")
        elif request.continuation.params.max_tokens <= len(request.continuation.emitted):
            self._report(TokenDelta(request.id, request.attempt, finish=FinishReason.LENGTH))
        elif request.continuation.emitted and self._fail_on_mismatch:
            self._fail(request, unavailable("No node is sure to compute as this stream's first one did.").info)
        else:
            run = self._runs[request.id] = Run(request, info, self._clock.now())
            self._loads[request.model].active += 1
            run.task = asyncio.create_task(self._run(run), name=f"external {request.id}")

    def _stop(self, request_id: str) -> None:
        """Nothing more is reported of it; its connection closes."""
        run = self._runs.pop(request_id, None)
        if run is not None:
            self._loads[run.request.model].active -= 1
            if run.task is not None:
                run.task.cancel()

    async def _run(self, run: Run) -> None:
        request = run.request
        try:
            last = await self._stream(run)
        except InferenceError as error:
            self._over(run)
            self._fail(request, error.info)
        except Refusal as refusal:
            self._over(run)
            self._refused(request, refusal)
        except Exception as error:  # not foreseen: it must move the request all the same, and be seen
            log.exception("node %s: request %s", self._server.name, request.id)
            self._over(run)
            self._refused(request, Refusal(f"{type(error).__name__}: {error}"))
        else:
            self._progress(run, last)
            self._over(run)
            self._condition.worked()
            self._report(last)

    async def _stream(self, run: Run) -> TokenDelta:
        """Report its news as they come; the last of them, which has not been reported."""
        reply = Reply(run.request, run.info.vocab_size)
        body = request_body(run.request, run.info.eos_tokens)
        async with aclosing(self._server.stream(body, urgency(run.request))) as events:
            async for data in events:
                delta = reply.take(data)
                if delta is not None:
                    self._progress(run, delta)
                    self._report(delta)
        return reply.end()

    def _progress(self, run: Run, delta: TokenDelta) -> None:
        now, load = self._clock.now(), self._loads[run.request.model]
        if not run.began:
            known = run.request.continuation
            load.first(len(known.prompt) + len(known.emitted), now - run.heard)
            self._refusals.forget(self._server.name, run.request.id)
        load.more(len(delta.tokens), now - run.heard if run.began else 0.0)
        run.began, run.heard = True, now

    def _over(self, run: Run) -> None:
        if self._runs.get(run.request.id) is run:
            del self._runs[run.request.id]
            self._loads[run.request.model].active -= 1

    def _fail(self, request: Request, error: ErrorInfo) -> None:
        self._refusals.forget(self._server.name, request.id)
        self._report(TokenDelta(request.id, request.attempt, finish=FinishReason.ERROR, error=error))

    def _refused(self, request: Request, refusal: Refusal) -> None:
        """The server did not do it: it is left alone for a while, and the request goes elsewhere, but not for ever."""
        log.warning("node %s: %s", self._server.name, refusal)
        self._condition.refused(refusal, self._clock.now())
        self._look.set()
        self._tell()
        count = self._refusals.add(self._server.name, request.id)
        if count < MOST_REFUSALS:
            self._lose([request.id], f"{self._server.name}: {refusal}")
        else:
            status = 429 if refusal.status == 429 else 502
            message = f"The external server that serves this model refused the request {count} times: {refusal}"
            self._fail(request, ErrorInfo(message=message, type=SERVER_ERROR, code="external_server", status=status))

    # -- the server's condition

    async def models(self) -> dict[str, int | None]:
        """For checks: what the server lists."""
        return await self._server.models()

    async def check(self, model: str) -> bool:
        """For checks: see that one token comes back as an id; whether one with its log-probability does."""
        started = self._clock.now()
        try:
            await self._one_token(one_token(model, logprobs=True))
        except NoLogprobs:
            await self._one_token(one_token(model, logprobs=False))
            log.warning("node %s gives no log-probabilities of %s by token id", self._server.name, model)
            return False
        self._loads[model].more(1, self._clock.now() - started)
        return True

    async def _one_token(self, request: Request) -> None:
        reply, tokens = Reply(request, self._models[request.model].vocab_size), 0
        async with aclosing(self._server.stream(request_body(request, ()), {}, FIRST_TOKEN_SECONDS)) as events:
            try:
                async for data in events:
                    delta = reply.take(data)
                    tokens += 0 if delta is None else len(delta.tokens)
            except InferenceError as error:
                raise Refusal(f"it refuses to compute one token: {error}") from error
        if tokens + len(reply.end().tokens) == 0:
            raise NoTokenIds("it does not return token ids; it cannot be a node")

    async def _watch(self) -> None:
        """Check the server now and then, and at once when something went wrong; end the link when it is gone."""
        while True:
            self._look.clear()
            await self._condition.check(self)
            self._tell()
            if self._condition.gone:
                self._end()
                return
            pause = min(self._condition.rests(self._clock.now()) or CHECK_PAUSE_SECONDS, CHECK_PAUSE_SECONDS)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), pause)

    def _set_drain(self, seconds: float | None) -> None:
        """Take nothing new, and move what is left after so long; None takes it back."""
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None
        self._condition.draining = seconds is not None
        if seconds is not None:
            self._drain = asyncio.get_running_loop().call_later(seconds, self._drained)
        self._tell()

    def _drained(self) -> None:
        left = list(self._runs)
        for request_id in left:
            self._stop(request_id)
        if left:
            self._lose(left, f"{self._server.name} drains")

    # -- news

    def _report(self, delta: TokenDelta) -> None:
        """Pass a request's news on, together with whatever else comes in the same turn of the loop."""
        if not self._news:
            self._news_at = self._clock.wall()
            asyncio.get_running_loop().call_soon(self._flush)
        self._news.append(delta)

    def _flush(self) -> None:
        if self._news and not self._closed:
            deltas, self._news = tuple(self._news), []
            self._inbox.put_nowait(StepReport(deltas=deltas, at=self._news_at))

    def _lose(self, request_ids: list[str], reason: str) -> None:
        self._put(Lost(request_ids=tuple(request_ids), reason=reason, present=False))

    def _tell(self) -> None:
        """Say what has changed in the server's condition."""
        state = self._condition.state(self._clock.now())
        if state != self._told:
            self._told = state
            self._put(state)

    def _stats(self) -> tuple[InstanceStats, ...]:
        return tuple(load.stats() for name, load in self._loads.items() if self._condition.served(name))

    def _put(self, message: FromNode) -> None:
        """In order: what was reported before goes before."""
        self._flush()
        if not self._closed:
            self._inbox.put_nowait(message)
