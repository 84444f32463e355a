"""Runs requests on a node and carries them over when workers die.

    submit ─▶ waiting ──node ready──▶ running ──finish──▶ gone
                 ▲                       │ lost with its worker
                 └───────────────────────┘ prompt + emitted go out again, as the next attempt

A request present in deaths without making progress in between is suspected of causing them. After two, suspects are tried
one at a time: each is dispatched when the one before has emitted a token, and nothing else is dispatched meanwhile. After
three, a suspect runs alone until it emits a token; it is given up only if a worker dies with it alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from inference_stack.config.tree import ServerConfig
from inference_stack.core.errors import (
    ErrorInfo,
    deadline_exceeded,
    invalid,
    model_not_found,
    queue_full,
    unavailable,
    worker_crashed,
)
from inference_stack.core.fleet import ModelInfo, NodeState
from inference_stack.core.request import Request
from inference_stack.core.seams import Clock, Link, LinkClosed
from inference_stack.core.stats import InstanceStats
from inference_stack.core.step import TokenDelta
from inference_stack.gateway.flight import ALONE_DEATHS, Flight
from inference_stack.policy.admission import DrainRate, admit
from inference_stack.wire.deadlines import departing
from inference_stack.wire.messages import Abort, FromNode, Lost, StepReport, Submit, ToNode

log = logging.getLogger(__name__)

TRIAL_DEATHS = 2
EXPIRY_PAUSE_SECONDS = 0.1


class Observer(Protocol):
    """What is told of a dispatcher's life: metrics, usually."""

    def observe_instance(self, stats: InstanceStats) -> None:
        """An instance's numbers after a step."""
        ...

    def observe_node(self, state: NodeState) -> None:
        """A node's condition changed."""
        ...

    def observe_moved(self, requests: int, reason: str) -> None:
        """Requests were lost with a worker and go on elsewhere."""
        ...


class Dispatcher:
    """The gateway's side of one node link; implements `gateway.api.Dispatch`."""

    def __init__(
        self,
        link: Link[ToNode, FromNode],
        config: ServerConfig,
        clock: Clock,
        observer: Observer,
        on_state: Callable[[NodeState], None] = lambda state: None,
    ) -> None:
        self._link = link
        self._config = config
        self._clock = clock
        self._observer = observer
        self._models: dict[str, ModelInfo] = {}
        self._node: NodeState | None = None
        self._waiting: dict[str, Flight] = {}
        self._running: dict[str, Flight] = {}
        self._on_trial: Flight | None = None
        self._drain_rate = DrainRate()
        self._outbox: asyncio.Queue[ToNode] = asyncio.Queue()
        self._on_state = on_state

    async def run(self) -> None:
        """Work until the node's link closes; what is then unfinished fails."""
        helpers = [asyncio.create_task(self._send()), asyncio.create_task(self._expire_waiting())]
        try:
            await self._receive()
        finally:
            self._node = None
            for task in helpers:
                task.cancel()
            self._fail_all(unavailable("The node is gone.").info)

    def models(self) -> dict[str, ModelInfo]:
        """Models that are served, by name; empty until one is ready."""
        return self._models

    def nodes(self) -> tuple[NodeState, ...]:
        """The nodes' last known states."""
        return () if self._node is None else (self._node,)

    def admit(self, model: str, completions: int) -> None:
        """Refuse what cannot be accepted now: 404, 429 with Retry-After, 503; or never: 400."""
        if self._node is None or self._node.error is not None or not self._models:
            reason = self._node.error.message if self._node and self._node.error else "The model is being loaded."
            raise unavailable(reason)
        if model not in self._models:
            raise model_not_found(model)
        at_once = sum(info.max_running for info in self._models.values())
        if completions > at_once + self._config.max_queue:
            limit = at_once + self._config.max_queue
            raise invalid(f"One request may have at most {limit} completions here, not {completions}.", param="n")
        decision = admit(
            outstanding=len(self._waiting) + len(self._running),
            max_running=at_once,
            max_queue=self._config.max_queue,
            rate=self._drain_rate.per_second(self._clock.now()),
            count=completions,
        )
        if not decision.admitted:
            raise queue_full(decision.retry_after)

    def submit(self, request: Request) -> Flight:
        """Accept a request. It runs, or waits, until it ends or is aborted."""
        flight = Flight(request, self._abort)
        self._waiting[flight.id] = flight
        self._dispatch()
        return flight

    @property
    def idle(self) -> bool:
        """Whether no request is waiting or running."""
        return not self._waiting and not self._running

    def fail_remaining(self, error: ErrorInfo) -> None:
        """End every stream with `error`; for the end of a drain."""
        for flight in [*self._waiting.values(), *self._running.values()]:
            flight.fail(error)
            self._abort(flight)

    def _dispatch(self) -> None:
        """Send what may be sent: suspects first, one by one; everything else together."""
        if self._node is None or not self._node.ready or self._on_trial is not None or not self._waiting:
            return
        batch = list(self._waiting.values())
        suspect = max(batch, key=lambda flight: flight.deaths)
        if suspect.must_be_alone and self._running:
            return
        if suspect.deaths >= TRIAL_DEATHS:
            batch = [suspect]
            self._on_trial = suspect
        now = self._clock.now()
        for flight in batch:
            self._running[flight.id] = self._waiting.pop(flight.id)
        self._outbox.put_nowait(Submit(requests=tuple(departing(flight.next_attempt(), now) for flight in batch)))

    def _abort(self, flight: Flight) -> None:
        self._waiting.pop(flight.id, None)
        if self._running.pop(flight.id, None) is not None:
            self._outbox.put_nowait(Abort(request_ids=(flight.id,)))
            self._drain_rate.finished(self._clock.now())
        self._released(flight)

    def _released(self, flight: Flight) -> None:
        """A flight is over, or acquitted."""
        if self._on_trial is flight:
            self._on_trial = None
        self._dispatch()

    async def _send(self) -> None:
        try:
            while True:
                await self._link.send(await self._outbox.get())
        except LinkClosed:
            return

    async def _receive(self) -> None:
        try:
            while True:
                self._handle(await self._link.receive())
        except LinkClosed:
            log.warning("the node's link closed")

    def _handle(self, message: FromNode) -> None:
        match message:
            case StepReport(deltas=deltas, stats=stats):
                for numbers in stats:
                    self._observer.observe_instance(numbers)
                for delta in deltas:
                    self._deliver(delta)
            case Lost():
                self._recover(message)
            case NodeState():
                self._node_changed(message)

    def _deliver(self, delta: TokenDelta) -> None:
        flight = self._running.get(delta.request_id)
        if flight is None:
            return
        flight.take(delta)
        if flight.done:
            del self._running[flight.id]
            self._drain_rate.finished(self._clock.now())
        if flight.done or (self._on_trial is flight and flight.deaths == 0):
            self._released(flight)

    def _recover(self, lost: Lost) -> None:
        """Requests lost with a worker wait for the next one, in their old order and before newer ones."""
        flights = [self._running.pop(request_id) for request_id in lost.request_ids if request_id in self._running]
        if self._on_trial in flights:
            self._on_trial = None
        back: dict[str, Flight] = {}
        for flight in flights:
            flight.deaths += lost.present
            if flight.deaths > ALONE_DEATHS:
                flight.fail(worker_crashed())
            else:
                back[flight.id] = flight
        self._waiting = back | self._waiting
        self._observer.observe_moved(len(back), lost.reason)
        self._dispatch()

    def _node_changed(self, state: NodeState) -> None:
        self._node = state
        self._models = self._models | {info.name: info for info in state.models}
        self._observer.observe_node(state)
        self._on_state(state)
        if state.error is not None:
            self._fail_all(unavailable(state.error.message).info)
        self._dispatch()

    def _fail_all(self, error: ErrorInfo) -> None:
        for flight in [*self._waiting.values(), *self._running.values()]:
            flight.fail(error)
        self._waiting.clear()
        self._running.clear()
        self._on_trial = None

    async def _expire_waiting(self) -> None:
        """Deadlines pass here too, while no worker can take a request."""
        while True:
            await self._clock.sleep(EXPIRY_PAUSE_SECONDS)
            now = self._clock.now()
            for flight in list(self._waiting.values()):
                deadlines = [flight.request.qos.deadline, None if flight.emitted else flight.request.qos.ttft_deadline]
                if any(deadline is not None and deadline < now for deadline in deadlines):
                    flight.fail(deadline_exceeded())
                    self._abort(flight)
