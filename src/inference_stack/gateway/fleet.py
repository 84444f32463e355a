"""A gateway's links to its nodes: messages out, news in, and the silence that means a node is gone.

    Dispatcher ─orders─▶ outbox ─▶ link ═══ node        every message is a sign of life; a beat says what was heard there

Decides nothing about requests: that is the dispatcher's. Links are made elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping

from inference_stack.core.errors import ErrorInfo
from inference_stack.core.fleet import ModelInfo, NodeState
from inference_stack.core.request import Request
from inference_stack.core.seams import Clock, Link, LinkClosed
from inference_stack.dispatch.dispatcher import Dispatcher, Limits
from inference_stack.dispatch.flight import Flight, Sink
from inference_stack.gateway.observer import MetricsObserver
from inference_stack.gateway.vocabularies import Vocabularies
from inference_stack.telemetry.metrics import Metrics
from inference_stack.wire.deadlines import departing
from inference_stack.wire.messages import (
    WIRE_VERSION,
    Abort,
    Attach,
    Beat,
    FromNode,
    Lost,
    StepReport,
    Submit,
    ToNode,
)
from inference_stack.wire.pulse import Pulse

log = logging.getLogger(__name__)

TICK_SECONDS = 0.1
BEAT_SECONDS = 0.25
BEATS_PER_SILENCE = 6


class Connection:
    """One link, while it lasts."""

    def __init__(self, link: Link[ToNode, FromNode], pulse: Pulse) -> None:
        self.link = link
        self.pulse = pulse
        self.outbox: asyncio.Queue[ToNode] = asyncio.Queue()


class Fleet:
    """All nodes of one gateway; implements `gateway.api.Dispatch` and the dispatcher's `Orders`. `vocabularies` are the digests of
    the gateway's own, by the names of models."""

    def __init__(
        self,
        name: str,
        limits: Limits,
        silence_seconds: float,
        clock: Clock,
        metrics: Metrics,
        on_state: Callable[[NodeState], None] = lambda state: None,
        vocabularies: Mapping[str, str] | None = None,
    ) -> None:
        self._vocabularies = Vocabularies(vocabularies or {})
        self._refused: dict[str, tuple[str, ...]] = {}
        self._hello = Attach(wire_version=WIRE_VERSION, gateway=name, boot=secrets.token_hex(8))
        self._silence = silence_seconds
        self._clock = clock
        self._metrics = metrics
        self._on_state = on_state
        self._observers: dict[str, MetricsObserver] = {}
        self._connections: dict[str, Connection] = {}
        self._dispatcher = Dispatcher(self, self, limits, clock.now)
        self.news_at = 0.0

    # -- gateway.api.Dispatch

    def models(self) -> dict[str, ModelInfo]:
        """Models that are served, by name; empty until one is ready."""
        return self._dispatcher.models()

    def nodes(self) -> tuple[NodeState, ...]:
        """The last known states of the nodes that can be reached."""
        return self._dispatcher.nodes()

    def admit(self, model: str, completions: int) -> None:
        """Refuse what cannot be accepted now. Raises `InferenceError`."""
        self._dispatcher.admit(model, completions)

    def submit(self, request: Request, sink: Sink, holder: bytes = b"", numerics: str = "") -> Flight:
        """Accept a request; `sink` gets its news."""
        return self._dispatcher.submit(request, sink, holder=holder, numerics=numerics)

    @property
    def idle(self) -> bool:
        """Whether no request is waiting or running."""
        return self._dispatcher.idle

    def fail_remaining(self, error: ErrorInfo) -> None:
        """End every stream with `error`; for the end of a drain."""
        self._dispatcher.fail_all(error)

    def tell(self, key: str, message: ToNode) -> bool:
        """Send a node something that is not about requests; whether it can be reached."""
        connection = self._connections.get(key)
        if connection is not None:
            connection.outbox.put_nowait(message)
        return connection is not None

    def flights(self) -> list[Flight]:
        """Every request that waits or runs."""
        return self._dispatcher.flights()

    def keys(self) -> dict[str, NodeState]:
        """The nodes that can be reached, by the key that `tell` takes."""
        return self._dispatcher.nodes_by_key()

    def refused(self, key: str) -> tuple[str, ...]:
        """Why models of a node are not used, though it serves them."""
        return self._refused.get(key, ())

    # -- dispatch.Orders and Watcher

    def send(self, node: str, requests: tuple[Request, ...]) -> None:
        """Run these on a node."""
        connection = self._connections.get(node)
        if connection is not None:
            now = self._clock.now()
            connection.outbox.put_nowait(Submit(requests=tuple(departing(request, now) for request in requests)))

    def stop(self, node: str, request_ids: tuple[str, ...]) -> None:
        """Stop these on a node."""
        connection = self._connections.get(node)
        if connection is not None:
            connection.outbox.put_nowait(Abort(request_ids=request_ids))

    def observe_moved(self, requests: int, reason: str) -> None:
        """Requests were lost and go on elsewhere."""
        log.warning("%d requests move: %s", requests, reason)
        self._metrics.resumed.inc(requests)

    def observe_mismatch(self, model: str) -> None:
        """A stream goes on where numbers come out differently."""
        self._metrics.mismatched.labels(model).inc()

    @property
    def known(self) -> int:
        """As many nodes as were known at once."""
        return self._dispatcher.columns

    # -- links

    def forget(self, key: str) -> None:
        """A node is no longer named, and its link is over: what was known of it is not needed any more."""
        if key in self._connections:
            return
        observer = self._observers.pop(key, None)
        if observer is not None:
            observer.forget(any(other.name == observer.name for other in self._observers.values()))
        self._dispatcher.forget(key)

    async def run(self) -> None:
        """Let time pass for the dispatcher, until cancelled."""
        while True:
            await self._clock.sleep(TICK_SECONDS)
            self._dispatcher.tick()

    async def serve_link(self, key: str, link: Link[ToNode, FromNode], watched: bool = True) -> str:
        """Work with a node until its link closes or, where it is `watched`, falls silent; why it ended."""
        connection = Connection(link, Pulse(self._silence, self._clock.now()))
        self._connections[key] = connection
        self._observers.setdefault(key, MetricsObserver(self._metrics, key))
        self._dispatcher.attached(key)
        connection.outbox.put_nowait(self._hello)
        parts = [self._send(connection), self._receive(key, connection)]
        tasks = [asyncio.create_task(part) for part in [*parts, *([self._watch(connection)] if watched else [])]]
        reason = "its link ended"
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            reason = next(iter(done)).result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._connections.get(key) is connection:
                del self._connections[key]
                self._refused.pop(key, None)
                self._observers[key].observe_gone()
                self._dispatcher.detached(key, reason)
            await link.close()
        return reason

    async def _send(self, connection: Connection) -> str:
        try:
            while True:
                await connection.link.send(await connection.outbox.get())
        except LinkClosed:
            return "the link closed"

    async def _receive(self, key: str, connection: Connection) -> str:
        try:
            while True:
                message = await connection.link.receive()
                connection.pulse.hear(message, self._clock.now())
                self._handle(key, message)
        except LinkClosed:
            return "the link closed"

    async def _watch(self, connection: Connection) -> str:
        """Send beats, and look at what comes back, until it is bad; why. Looks again just when silence would be too long."""
        clock, pulse = self._clock, connection.pulse
        pause = min(BEAT_SECONDS, self._silence / BEATS_PER_SILENCE)
        due = clock.now()
        while True:
            if (now := clock.now()) >= due:
                connection.outbox.put_nowait(pulse.beat(now))
                due = now + pause
            await clock.sleep(min(due - now, pulse.patience(now)))
            if verdict := pulse.verdict(clock.now()):
                return verdict

    def _handle(self, key: str, message: FromNode) -> None:
        match message:
            case StepReport(deltas=deltas, stats=stats, at=at):
                for numbers in stats:
                    self._observers[key].observe_instance(numbers)
                    self._dispatcher.stats(key, numbers)
                self.news_at = at
                self._dispatcher.deltas(key, deltas)
                self.news_at = 0.0
            case Lost(request_ids=request_ids, reason=reason, present=present):
                self._dispatcher.lost(key, request_ids, reason, present)
            case NodeState():
                state = self._accepted(key, message)
                self._observers[key].observe_node(state)
                self._dispatcher.state(key, state)
                self._on_state(state)
            case Beat():
                pass

    def _accepted(self, key: str, state: NodeState) -> NodeState:
        """What of a node's models can be used; the rest is refused, aloud when that is news."""
        accepted, refused = self._vocabularies.accepted(state)
        for reason in set(refused) - set(self._refused.get(key, ())):
            log.error("node %s: %s", key, reason)
        self._refused[key] = refused
        return accepted
