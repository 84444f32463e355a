"""Runs requests on nodes and carries them over when workers, nodes or links die.

    submit ─▶ waiting ──a node for it──▶ running ──finish──▶ gone
                 ▲                          │ lost: its worker died, its node drains, hangs or is cut off
                 └──────────────────────────┘ prompt + emitted go out again, as the next attempt

A request present in deaths without making progress in between is suspected of causing them. After two, suspects are tried
one at a time, each on a node that gets nothing else until it has emitted a token. After three, it also waits until that node
is empty; it is given up only if a worker dies with it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from inference_stack.core.errors import (
    ErrorInfo,
    InferenceError,
    deadline_exceeded,
    invalid,
    model_not_found,
    queue_full,
    unavailable,
    worker_crashed,
)
from inference_stack.core.fleet import ModelInfo, NodeState
from inference_stack.core.request import Request
from inference_stack.core.stats import InstanceStats
from inference_stack.core.step import TokenDelta
from inference_stack.dispatch.flight import ALONE_DEATHS, Flight, Sink
from inference_stack.dispatch.node import Node, Nodes
from inference_stack.dispatch.placement import CHUNK_TOKENS, Placement
from inference_stack.policy.admission import DrainRate, admit


class Orders(Protocol):
    """How a dispatcher reaches nodes. Both must return at once; what cannot be delivered is reported by `detached`."""

    def send(self, node: str, requests: tuple[Request, ...]) -> None:
        """Run these."""
        ...

    def stop(self, node: str, request_ids: tuple[str, ...]) -> None:
        """Stop these."""
        ...


class Watcher(Protocol):
    """What is told of a dispatcher's life: metrics, usually."""

    def observe_moved(self, requests: int, reason: str) -> None:
        """Requests were lost and go on elsewhere."""
        ...

    def observe_mismatch(self, model: str) -> None:
        """A stream goes on where numbers come out differently."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`max_queue`: completions that may wait beyond those running. `recovery_tokens`: to recompute, sent to a node at once.
    `fail_on_mismatch`: rather fail a stream than let it go on with other numerics. `homeless_seconds`: how long a stream waits
    while no node can be reached that serves its model, or may come to. `chunk_tokens`: of a prompt, that a node's step is taken to
    compute."""

    max_queue: int = 512
    recovery_tokens: int = 16384
    fail_on_mismatch: bool = False
    homeless_seconds: float = 60.0
    chunk_tokens: int = CHUNK_TOKENS


class Dispatcher:
    """One gateway's side of all its nodes. `now` gives monotonic seconds."""

    def __init__(self, orders: Orders, watcher: Watcher, limits: Limits, now: Callable[[], float]) -> None:
        self._orders = orders
        self._watcher = watcher
        self._limits = limits
        self._now = now
        self._nodes = Nodes()
        self._placement = Placement(self._nodes, limits.recovery_tokens, limits.fail_on_mismatch, limits.chunk_tokens)
        self._waiting: dict[str, Flight] = {}
        self._running = 0
        self._on_trial: Flight | None = None
        self._drain_rate = DrainRate()
        self._known: dict[str, ModelInfo] = {}
        self._hope_at: dict[str, float] = {}
        self._littered: dict[str, Node] = {}

    # -- for those who ask

    def models(self) -> dict[str, ModelInfo]:
        """Models that are served, by name; empty until one is ready."""
        return self._known

    def nodes(self) -> tuple[NodeState, ...]:
        """The last known states of the nodes that can be reached."""
        return tuple(node.state for node in self._nodes if node.linked and node.state is not None)

    def nodes_by_key(self) -> dict[str, NodeState]:
        """The same, by the keys they were attached with."""
        return {node.key: node.state for node in self._nodes if node.linked and node.state is not None}

    def flights(self) -> list[Flight]:
        """Every request that waits or runs."""
        return [*self._waiting.values(), *(flight for node in self._nodes for flight in node.running.values())]

    @property
    def columns(self) -> int:
        """As many nodes as were known at once."""
        return self._nodes.numbers

    @property
    def idle(self) -> bool:
        """Whether no request is waiting or running."""
        return not self._waiting and not self._running

    def admit(self, model: str, completions: int) -> None:
        """Refuse what cannot be accepted now: 404, 429 with Retry-After, 503; or never: 400. Raises `InferenceError`."""
        broken = self._all_broken()
        if broken is not None:
            raise InferenceError(broken)
        if not self._known:
            linked = any(node.linked for node in self._nodes)
            raise unavailable("The model is being loaded." if linked else "No node can be reached yet.")
        if model not in self._known:
            raise model_not_found(model)
        places = self._placement.places or sum(info.max_running for info in self._known.values())
        limit = places + self._limits.max_queue
        if completions > limit:
            raise invalid(f"One request may have at most {limit} completions here, not {completions}.", param="n")
        decision = admit(
            outstanding=len(self._waiting) + self._running,
            max_running=places,
            max_queue=self._limits.max_queue,
            rate=self._drain_rate.per_second(self._now()),
            count=completions,
        )
        if not decision.admitted:
            raise queue_full(decision.retry_after)

    def submit(
        self, request: Request, sink: Sink, names: Sequence[bytes] = (), holder: bytes = b"", numerics: str = ""
    ) -> Flight:
        """Accept a request: it runs, or waits, until it ends or is aborted. `holder` is a `node_hint` to prefer, `numerics` the
        `numerics_id` that computed what its client has already."""
        flight = Flight(request, sink, self._given_up, self._now(), names, holder, numerics)
        self._waiting[flight.id] = flight
        self._place((flight,))
        return flight

    def fail_all(self, error: ErrorInfo) -> None:
        """End every stream with `error`; for the end of a drain."""
        self._fail_waiting(error)
        for flight in self.flights():
            flight.fail(error)
            self._given_up(flight)

    def check(self) -> None:
        """Integrity of all bookkeeping, for tests and simulations. Raises `RuntimeError` with what is wrong."""
        running = [flight for node in self._nodes for flight in node.running.values()]
        if len(running) != self._running:
            raise RuntimeError(f"{len(running)} requests run, and {self._running} are counted")
        for flight in [*running, *self._waiting.values()]:
            if flight.done:
                raise RuntimeError(f"request {flight.id} has ended, and is kept")
        twice = {flight.id for flight in running} & self._waiting.keys()
        if twice or len({flight.id for flight in running}) != len(running):
            raise RuntimeError(f"a request runs twice, or waits beside running: {twice or running}")
        if self._on_trial is not None and self._on_trial.done:
            raise RuntimeError(f"request {self._on_trial.id} is on trial, and has ended")
        self._placement.check()

    # -- from nodes

    def attached(self, key: str) -> None:
        """A link to this node is up, and any earlier one is over. Its state comes next."""
        self.detached(key, "attached anew")
        node = self._nodes.get(key) or self._add(key)
        node.linked = True
        node.state = None

    def state(self, key: str, state: NodeState) -> None:
        """A node tells of itself."""
        node = self._node(key)
        self._look_around()
        node.take_state(state)
        self._placement.changed(node)
        self._known = self._placement.models(self._known)
        broken = self._all_broken()
        if broken is not None:
            self._fail_waiting(broken)
        self._place_waiting()
        self._sweep()

    def deltas(self, key: str, deltas: Iterable[TokenDelta]) -> None:
        """News of a node's requests. What belongs to no present attempt is ignored."""
        node = self._node(key)
        running = node.running
        for delta in deltas:
            flight = running.get(delta.request_id)
            if flight is None or delta.attempt != flight.attempt:
                continue
            if flight.uncached >= 0 and (delta.tokens or delta.finish is not None):
                self._began(flight, node)
            flight.take(delta)
            if flight.done and running.get(flight.id) is flight:
                self._ended(flight, node)

    def stats(self, key: str, numbers: InstanceStats) -> None:
        """An instance's numbers after a step."""
        self._placement.observe(self._node(key), numbers)

    def lost(self, key: str, request_ids: Iterable[str], reason: str, present: bool) -> None:
        """Nothing more comes of these. `present`: they were on a worker that died."""
        node = self._node(key)
        flights = [node.running[request_id] for request_id in request_ids if request_id in node.running]
        for flight in flights:
            self._withdraw(flight, node)
            flight.deaths += present
        self._recover(flights, reason)

    def detached(self, key: str, reason: str) -> None:
        """The link to a node is gone, or the node is silent: what runs there goes on elsewhere."""
        node = self._nodes.get(key)
        if node is None or not node.linked:
            return
        self._look_around()
        flights = list(node.running.values())
        if flights:
            node.left_behind.update(node.running)
            self._littered[key] = node
        for flight in flights:
            self._withdraw(flight, node)
            flight.holder = node.hint
        node.linked = False
        self._placement.changed(node)
        self._recover(flights, reason)

    def forget(self, key: str) -> None:
        """A node that is detached does not come back."""
        node = self._nodes.get(key)
        if node is not None and not node.linked:
            self._placement.forget(node)
            self._littered.pop(key, None)
            self._nodes.forget(node)

    def tick(self) -> None:
        """Called about ten times a second: deadlines pass, and patience ends, while nothing arrives."""
        self._look_around()
        if not self._waiting:
            return
        now = self._now()
        self._fail([flight for flight in self._waiting.values() if _late(flight, now)], deadline_exceeded())
        broken = self._all_broken()
        if broken is not None:
            self._fail_waiting(broken)
        self._fail([flight for flight in self._waiting.values() if self._homeless(flight, now)], _nowhere())
        self._place_waiting()

    def _look_around(self) -> None:
        """Note the time, for every model that some node in reach serves or may come to serve."""
        now = self._now()
        for model in self._known:
            if any(node.may_serve(model) for node in self._nodes):
                self._hope_at[model] = now

    def _homeless(self, flight: Flight, now: float) -> bool:
        return now - self._hope_at.get(flight.request.model, now) > self._limits.homeless_seconds

    # -- placing

    def _place_waiting(self) -> None:
        if self._waiting:
            waiting = list(self._waiting.values())
            suspects = [flight for flight in waiting if flight.suspect]
            if suspects:
                worst = max(suspects, key=lambda flight: flight.deaths)
                waiting = [worst, *(flight for flight in waiting if flight is not worst)]
            self._place(waiting)

    def _place(self, flights: Iterable[Flight]) -> None:
        """Send what may be sent, one message per node."""
        batches: dict[str, list[Request]] = {}
        hopeless: list[Flight] = []
        for flight in flights:
            node = None if flight.suspect and not self._may_try(flight) else self._placement.node_for(flight)
            if node is not None and flight.must_be_alone and node.running:
                self._placement.reserve(node, flight)
                node = None
            if node is not None:
                batches.setdefault(node.key, []).append(self._depart(flight, node))
            elif self._placement.impossible(flight):
                hopeless.append(flight)
        for key, requests in batches.items():
            self._orders.send(key, tuple(requests))
        self._fail(hopeless, unavailable("No node computes as this stream's first one did.").info)
        self._sweep()

    def _may_try(self, flight: Flight) -> bool:
        if self._on_trial is None:
            self._on_trial = flight
        return self._on_trial is flight

    def _depart(self, flight: Flight, node: Node) -> Request:
        del self._waiting[flight.id]
        node.running[flight.id] = flight
        self._running += 1
        if flight.suspect:
            self._placement.reserve(node, flight)
        if self._placement.depart(flight, node):
            self._watcher.observe_mismatch(flight.request.model)
        return flight.next_attempt()

    # -- what becomes of flights

    def _began(self, flight: Flight, node: Node) -> None:
        """Its first token of this attempt: what it had to compute before is computed, and it is acquitted."""
        recovered = flight.recovering
        self._placement.began(flight, node)
        if self._on_trial is flight:
            self._acquit(flight)
            self._place_waiting()
        elif recovered:
            self._place_waiting()

    def _ended(self, flight: Flight, node: Node) -> None:
        del node.running[flight.id]
        self._running -= 1
        self._placement.ended(flight, node)
        self._drain_rate.finished(self._now())
        self._acquit(flight)
        if self._waiting:
            self._place_waiting()

    def _withdraw(self, flight: Flight, node: Node) -> None:
        """It does not run there any more, and has not ended."""
        del node.running[flight.id]
        self._running -= 1
        self._placement.withdrawn(flight, node)
        self._acquit(flight)

    def _acquit(self, flight: Flight) -> None:
        if self._on_trial is flight:
            self._on_trial = None
            self._placement.free(flight)

    def _given_up(self, flight: Flight) -> None:
        """Nobody wants it any more."""
        node = flight.node
        if self._waiting.pop(flight.id, None) is None and node is not None and node.running.get(flight.id) is flight:
            self._withdraw(flight, node)
            self._orders.stop(node.key, (flight.id,))
            self._drain_rate.finished(self._now())
        self._acquit(flight)
        self._sweep()
        if self._waiting:
            self._place_waiting()

    def _recover(self, flights: Iterable[Flight], reason: str) -> None:
        """Lost flights wait for the next place: the most important first, and before what never ran."""
        back: list[Flight] = []
        for flight in flights:
            if flight.deaths > ALONE_DEATHS:
                flight.fail(worker_crashed())
            elif not flight.done:  # it may have failed with the one before it
                flight.moves += 1
                flight.recovering = True
                flight.since = self._now()
                back.append(flight)
        if back:
            again = [flight for flight in self._waiting.values() if flight.recovering]
            ordered = sorted([*back, *again], key=lambda flight: flight.urgency)
            self._waiting = {flight.id: flight for flight in ordered} | self._waiting
            self._watcher.observe_moved(len(back), reason)
        self._place_waiting()

    def _fail_waiting(self, error: ErrorInfo) -> None:
        self._fail(list(self._waiting.values()), error)

    def _fail(self, flights: list[Flight], error: ErrorInfo) -> None:
        """End what waits. All leave before any is told: whoever is told may abort others, and then what is left is placed."""
        for flight in flights:
            del self._waiting[flight.id]
        for flight in flights:
            flight.fail(error)
            self._acquit(flight)
        if flights:
            self._sweep()

    # -- nodes

    def _node(self, key: str) -> Node:
        found = self._nodes.get(key)
        if found is None:
            raise KeyError(f"no node {key} was attached")
        return found

    def _add(self, key: str) -> Node:
        node = self._nodes.add(key)
        self._placement.added(node)
        return node

    def _sweep(self) -> None:
        """Nodes that are back: stop what they still run for nobody. What waits may yet be taken up where it is."""
        for node in [node for node in self._littered.values() if node.usable]:
            waiting = node.left_behind & self._waiting.keys()
            void = tuple(sorted(node.left_behind - waiting - node.running.keys()))
            node.left_behind = waiting
            if not waiting:
                del self._littered[node.key]
            if void:
                self._orders.stop(node.key, void)

    def _all_broken(self) -> ErrorInfo | None:
        """Why nothing will ever be served, once every node in reach has given up."""
        first: ErrorInfo | None = None
        for node in self._nodes:
            if node.linked:
                if node.state is None or node.state.error is None:
                    return None  # usually the first: this is asked for every request
                first = first or node.state.error
        return None if first is None else unavailable(first.message).info


def _late(flight: Flight, now: float) -> bool:
    """Whether a deadline has passed. That of the first token is met once there is one."""
    qos = flight.request.qos
    deadlines = (qos.deadline, None if flight.emitted else qos.ttft_deadline)
    return any(deadline is not None and deadline < now for deadline in deadlines)


def _nowhere() -> ErrorInfo:
    return unavailable("No node that serves the model can be reached.").info
