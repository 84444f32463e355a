"""Requests outlive workers: what was lost goes on with everything it had emitted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from inference_stack.config.tree import ServerConfig
from inference_stack.core.errors import ErrorInfo, InferenceError
from inference_stack.core.fleet import ModelInfo, NodeState
from inference_stack.core.request import Continuation, FinishReason, Qos, Request, SamplingParams
from inference_stack.core.seams import SystemClock
from inference_stack.core.stats import InstanceStats
from inference_stack.core.step import TokenDelta, TokenLogprob
from inference_stack.gateway.dispatch import Dispatcher
from inference_stack.gateway.flight import Flight
from inference_stack.wire.memory import MemoryLink, memory_pair
from inference_stack.wire.messages import Abort, Lost, StepReport, Submit

MODEL = ModelInfo(
    name="m",
    architecture="llama",
    numerics_id="x",
    max_model_len=100,
    vocab_size=10,
    eos_tokens=(0,),
    kv_groups=(),
    kv_blocks=10,
    max_running=4,
)
READY = NodeState(node="n", ready=True, models=(MODEL,))


class Records:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.moved: list[int] = []

    def observe_instance(self, stats: InstanceStats) -> None:
        self.stats = stats

    def observe_node(self, state: NodeState) -> None:
        self.state = state

    def observe_moved(self, requests: int, reason: str) -> None:
        self.moved.append(requests)


class House:
    """A dispatcher and the node's end of its link, played by the test."""

    def __init__(self, dispatcher: Dispatcher, node: MemoryLink, records: Records) -> None:
        self.dispatcher = dispatcher
        self.node = node
        self.records = records

    async def dispatched(self) -> list[Request]:
        message = await asyncio.wait_for(self.node.receive(), 5)
        assert isinstance(message, Submit)
        return list(message.requests)

    async def emit(self, request: Request, *tokens: int, **fields: object) -> None:
        delta = TokenDelta(request_id=request.id, attempt=request.attempt, tokens=tokens, **fields)  # type: ignore[arg-type]
        await self.node.send(StepReport(deltas=(delta,)))

    async def die(self, *requests: Request, present: bool = True) -> None:
        await self.node.send(replace(READY, ready=False, models=()))
        await self.node.send(Lost(request_ids=tuple(r.id for r in requests), reason="killed", present=present))
        await self.node.send(READY)


@asynccontextmanager
async def house(**config: object) -> AsyncIterator[House]:
    here, there = memory_pair()
    records = Records()
    dispatcher = Dispatcher(here, ServerConfig(**config), SystemClock(), records)  # type: ignore[arg-type]
    task = asyncio.create_task(dispatcher.run())
    await there.send(READY)
    while not dispatcher.nodes():
        await asyncio.sleep(0)
    yield House(dispatcher, there, records)
    await there.close()
    await task


def request(name: str = "r", **fields: object) -> Request:
    params = SamplingParams(max_tokens=10, prompt_logprobs=0)
    return Request(id=name, model="m", continuation=Continuation(prompt=(1, 2), params=params, seed=7), **fields)  # type: ignore[arg-type]


async def read(flight: Flight) -> tuple[list[int], TokenDelta]:
    tokens: list[int] = []
    last = TokenDelta(request_id="")
    async for delta in flight:
        tokens += delta.tokens
        last = delta
    return tokens, last


async def test_a_lost_request_goes_on_with_what_it_emitted() -> None:
    async with house() as h:
        flight = h.dispatcher.submit(request())
        (first,) = await h.dispatched()
        await h.emit(first, 3, 4)
        await h.die(first)
        (second,) = await h.dispatched()
        assert second.continuation.emitted == (3, 4)
        assert second.attempt > first.attempt
        await h.emit(first, 9)  # a ghost of the first attempt
        await h.emit(second, 5, finish=FinishReason.STOP)
        tokens, last = await read(flight)
        assert (tokens, last.finish) == ([3, 4, 5], FinishReason.STOP)
        assert h.records.moved == [1]


async def test_what_was_told_once_is_not_told_again() -> None:
    entry = (TokenLogprob(token=2, logprob=-1.0, rank=1),)
    async with house() as h:
        flight = h.dispatcher.submit(request())
        (first,) = await h.dispatched()
        await h.emit(first, 3, cached_tokens=0, queue_seconds=0.5, prompt_logprobs=entry)
        await h.die(first)
        (second,) = await h.dispatched()
        assert second.continuation.params.prompt_logprobs is None
        await h.emit(second, 4, cached_tokens=2, queue_seconds=0.0, finish=FinishReason.LENGTH)
        deltas = [delta async for delta in flight]
        assert [d.cached_tokens for d in deltas if d.cached_tokens is not None] == [0]
        assert [d.queue_seconds for d in deltas if d.queue_seconds is not None] == [0.5]


async def test_prompt_logprobs_that_were_lost_are_asked_again() -> None:
    async with house() as h:
        h.dispatcher.submit(request())
        (first,) = await h.dispatched()
        await h.die(first)
        (second,) = await h.dispatched()
        assert second.continuation.params.prompt_logprobs == 0


async def die_together(h: House, times: int, *names: str) -> None:
    """`names` are dispatched and lost without progress, `times` times."""
    for name in names:
        h.dispatcher.submit(request(name))
    for _ in range(times):
        requests = await h.dispatched()
        while len(requests) < len(names):
            requests += await h.dispatched()
        await h.die(*requests)


async def test_suspects_are_tried_one_at_a_time() -> None:
    async with house() as h:
        await die_together(h, 2, "a", "b")
        (first,) = await h.dispatched()
        assert first.id == "a" and not first.isolated
        h.dispatcher.submit(request("innocent"))
        await h.emit(first, 1)
        (second,) = await h.dispatched()
        assert second.id == "b"
        await h.emit(second, 1)
        (third,) = await h.dispatched()
        assert third.id == "innocent"


async def test_after_three_deaths_a_suspect_runs_alone() -> None:
    async with house() as h:
        await die_together(h, 2, "a", "b")
        (first,) = await h.dispatched()
        await h.emit(first, 1)
        (second,) = await h.dispatched()
        await h.die(first, second)
        (alone,) = await h.dispatched()
        assert alone.id == "b" and alone.isolated
        await h.emit(alone, 1)
        (other,) = await h.dispatched()
        assert other.id == "a" and not other.isolated


async def test_a_request_acquitted_alone_may_die_again() -> None:
    async with house() as h:
        flight = h.dispatcher.submit(request())
        for _ in range(3):
            (attempt,) = await h.dispatched()
            await h.die(attempt)
        (alone,) = await h.dispatched()
        assert alone.isolated
        await h.emit(alone, 1)
        await h.die(alone)
        (attempt,) = await h.dispatched()
        assert not attempt.isolated
        await h.emit(attempt, 2, finish=FinishReason.STOP)
        assert (await read(flight))[0] == [1, 2]


async def test_a_request_that_kills_a_worker_alone_is_given_up() -> None:
    async with house() as h:
        flight = h.dispatcher.submit(request())
        for _ in range(4):
            (attempt,) = await h.dispatched()
            await h.die(attempt)
        _, last = await read(flight)
        assert last.error is not None and last.error.code == "worker_crashed"


async def test_a_request_that_makes_progress_survives_any_number_of_deaths() -> None:
    async with house() as h:
        flight = h.dispatcher.submit(request())
        for token in range(8):
            (attempt,) = await h.dispatched()
            await h.emit(attempt, token)
            await h.die(attempt)
        (attempt,) = await h.dispatched()
        await h.emit(attempt, 8, finish=FinishReason.STOP)
        assert (await read(flight))[0] == list(range(9))


async def test_requests_that_never_reached_a_worker_are_not_suspects() -> None:
    async with house() as h:
        h.dispatcher.submit(request())
        for _ in range(5):
            (attempt,) = await h.dispatched()
            await h.die(attempt, present=False)
        (attempt,) = await h.dispatched()
        assert not attempt.isolated


async def test_abort_reaches_the_engine_once_and_ends_the_stream() -> None:
    async with house() as h:
        flight = h.dispatcher.submit(request())
        await h.dispatched()
        flight.abort()
        flight.abort()
        assert await h.node.receive() == Abort(request_ids=("r",))
        assert (await read(flight))[1].finish is FinishReason.ABORT
        assert h.dispatcher.idle


async def test_a_full_queue_is_refused_with_a_prediction() -> None:
    async with house(max_queue=2) as h:
        for number in range(6):
            h.dispatcher.admit("m", 1)
            h.dispatcher.submit(request(str(number)))
        with pytest.raises(InferenceError) as refusal:
            h.dispatcher.admit("m", 1)
        info = refusal.value.info
        assert info.status == 429 and info.retry_after is not None and 1 <= info.retry_after <= 60


async def test_unknown_models_are_not_found() -> None:
    async with house() as h:
        with pytest.raises(InferenceError) as refusal:
            h.dispatcher.admit("other", 1)
        assert refusal.value.info.status == 404


async def test_a_deadline_passes_while_no_worker_is_ready() -> None:
    async with house() as h:
        await h.node.send(replace(READY, ready=False, models=()))
        while h.dispatcher.nodes()[0].ready:
            await asyncio.sleep(0)
        flight = h.dispatcher.submit(request(qos=Qos(deadline=SystemClock().now())))
        _, last = await read(flight)
        assert last.error is not None and last.error.code == "deadline_exceeded"


async def test_a_node_that_gave_up_fails_what_waits() -> None:
    async with house() as h:
        flight = h.dispatcher.submit(request())
        await h.dispatched()
        await h.node.send(replace(READY, ready=False, models=(), error=ErrorInfo(message="broken", status=503)))
        _, last = await read(flight)
        assert last.error is not None and last.error.status == 503
        with pytest.raises(InferenceError):
            h.dispatcher.admit("m", 1)
