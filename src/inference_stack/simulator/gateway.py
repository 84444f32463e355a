"""A gateway on virtual time: the production dispatcher, its orders going over simulated lines, news coming back.

    clients ─submit─▶ Dispatcher ─orders─▶ lines ═══ nodes
       ▲ sinks ───────────┘  ▲ attached, state, deltas, stats, lost, detached, tick

Decides nothing: routing, continuation and recovery are the code that serves. What it orders is checked on its way out.
"""

from __future__ import annotations

from collections.abc import Sequence

from inference_stack.core.request import Request
from inference_stack.core.step import TokenDelta
from inference_stack.dispatch.dispatcher import Dispatcher, Limits
from inference_stack.simulator.clients import Clients
from inference_stack.simulator.instance import Times
from inference_stack.simulator.line import Line
from inference_stack.simulator.loop import Loop

TICK_SECONDS = 0.1


class Gateway:
    """One of a fleet's gateways; implements the dispatcher's `Orders` and `Watcher`.

    `lines` are by their nodes' keys; `boot` is another one for each of its processes.
    """

    def __init__(self, name: str, loop: Loop, clients: Clients, limits: Limits) -> None:
        self.name = name
        self.alive = True
        self.boot = 0
        self.lines: dict[str, Line] = {}
        self._loop = loop
        self._clients = clients
        self._limits = limits
        self.dispatcher = Dispatcher(self, self, limits, loop.now)
        clients.gateways.append(self)
        loop.after(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self.dispatcher.tick()
        self._loop.after(TICK_SECONDS, self._tick)

    @property
    def ready(self) -> bool:
        """Whether clients are sent to it: it lives, and knows what is served."""
        return self.alive and bool(self.dispatcher.models())

    # -- fates

    def die(self) -> None:
        """The process ends: connections close at both sides, and clients come back to another gateway."""
        if self.alive:
            for line in self.lines.values():
                line.node.instance.settle()
            self.alive = False
            self.boot += 1
            self.dispatcher = Dispatcher(self, self, self._limits, self._loop.now)
            for line in self.lines.values():
                line.break_off("the gateway is gone")
            self._clients.disconnected(self)

    def restart(self) -> None:
        """Another process in its place, which knows nothing."""
        if not self.alive:
            self.alive = True
            for line in self.lines.values():
                line.look()

    # -- orders

    def send(self, node: str, requests: tuple[Request, ...]) -> None:
        """Run these on a node."""
        for request in requests:
            self._clients.check_sent(request, node)
        self.lines[node].submit(requests)

    def stop(self, node: str, request_ids: tuple[str, ...]) -> None:
        """Stop these on a node."""
        self.lines[node].abort(request_ids)

    # -- to be watched

    def observe_moved(self, requests: int, reason: str) -> None:
        """Requests were lost and go on elsewhere."""
        self._clients.ledger.event(self._loop.now(), f"{self.name}: {requests} requests move: {reason}")

    def observe_mismatch(self, model: str) -> None:
        """A stream goes on where numbers come out differently."""
        self._clients.ledger.event(self._loop.now(), f"{self.name}: a stream of {model} goes on with other numerics")

    # -- news of nodes

    def deltas(self, node: str, deltas: Sequence[TokenDelta], at: float) -> None:
        """What a step came to, arriving at a time."""
        self._clients.at = at
        self.dispatcher.deltas(node, deltas)
        self._clients.at = None

    def leapt(self, node: str, deltas: Sequence[TokenDelta], times: Times) -> None:
        """What many steps came to: a token for each of these requests at each of these times."""
        self._clients.begin_stretch(times)
        self.dispatcher.deltas(node, deltas)
        self._clients.end_stretch()

    def lost(self, node: str, request_ids: Sequence[str], reason: str, present: bool) -> None:
        """Nothing more comes of these."""
        if present:
            self._clients.count_deaths(request_ids)
        self.dispatcher.lost(node, request_ids, reason, present)
