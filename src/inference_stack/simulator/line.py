"""One gateway's connection to one node: attached, silent, given up, dialled again; and what each end makes of that.

    gateway ──Attach, Submit, Abort──▶ node       ordered; what is sent while a direction is cut waits, and is lost with
    gateway ◀──state, news, Lost────── node       the connection when the gateway has heard nothing for too long

Beats are not sent one by one: while a direction is cut or the node hangs, the time until they are missed runs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from inference_stack.core.request import Request
from inference_stack.core.stats import InstanceStats
from inference_stack.core.step import TokenDelta
from inference_stack.simulator.instance import Times
from inference_stack.simulator.link import Drizzle, Pipe
from inference_stack.simulator.loop import Action, Loop, Timer

if TYPE_CHECKING:
    from inference_stack.simulator.gateway import Gateway
    from inference_stack.simulator.node import Node

Upward = Callable[[float, bool], None]
"""Done at the gateway, with the time at which it arrives there and whether it had to wait for the link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """Seconds: one way between gateway and node; of silence until a node is given up; between reports to routers; until a node
    drops what it computes for a gateway that is gone."""

    latency: float = 0.0002
    silence: float = 2.0
    report: float = 0.25
    orphans: float = 30.0


class Line:
    """`linked` while the gateway holds the connection. Every connection is a new one: nothing of the last comes out of it."""

    def __init__(self, loop: Loop, gateway: Gateway, node: Node, settings: LinkSettings, chance: random.Random) -> None:
        self.gateway = gateway
        self.node = node
        self.linked = False
        self.reports: Drizzle[InstanceStats] = Drizzle(loop, settings.latency, self._heard_stats, chance)
        self._loop = loop
        self._settings = settings
        self._down: Pipe[Action] = Pipe(loop, settings.latency, self._sink)
        self._up: Pipe[Upward] = Pipe(loop, settings.latency, self._rise)
        self._connections = 0
        self._silence: Timer | None = None
        self._orphans: dict[int, Timer] = {}
        self._boot = 0

    @property
    def well(self) -> bool:
        """Whether everything that is said arrives, or nobody is there to say anything."""
        return not self.gateway.alive or (self.linked and not self._down.cut and not self._up.cut)

    @property
    def orphaning(self) -> bool:
        """Whether the node keeps what a process that is gone has left behind, for now."""
        return bool(self._orphans)

    # -- the gateway's end

    def submit(self, requests: Sequence[Request]) -> None:
        """Run these."""
        self._ask(partial(self.node.submit, self, self._boot, requests))

    def abort(self, request_ids: Sequence[str]) -> None:
        """Stop these."""
        self._ask(partial(self.node.abort, self, self._boot, request_ids))

    def start(self) -> None:
        """Both ends are up before the run begins."""
        self.linked = True
        self.gateway.dispatcher.attached(self.node.key)
        self.gateway.dispatcher.state(self.node.key, self.node.state())

    def look(self) -> None:
        """Something has changed: silence begins or ends, or the node can be dialled again."""
        silent = self.node.hung or self._down.cut or self._up.cut
        if not silent:
            self._call_off()
            self._dial()
        elif self.linked and self._silence is None:
            self._silence = self._loop.after(self._settings.silence, self._too_long)

    def break_off(self, reason: str) -> None:
        """The connection is gone. What the node computes goes on there for a while, unheard."""
        if not self.linked:
            return
        self._call_off()
        self.linked = False
        self._connections += 1
        self._down.reset()
        self._up.reset()
        self._orphans[self._boot] = self._loop.after(self._settings.orphans, partial(self._drop_orphans, self._boot))
        self.gateway.dispatcher.detached(self.node.key, reason)

    def _dial(self) -> None:
        if self.linked or not self.node.alive or not self.gateway.alive:
            return
        self._boot = self.gateway.boot
        if timer := self._orphans.pop(self._boot, None):
            timer.cancel()
        self.linked = True
        self.gateway.dispatcher.attached(self.node.key)
        self._ask(partial(self.node.greet, self))

    def _ask(self, message: Action) -> None:
        if self.linked:
            self._down.send(message)

    def _too_long(self) -> None:
        self._silence = None
        self.node.instance.settle()
        self.break_off(f"silent for {self._settings.silence:g} s")

    def _call_off(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    # -- the node's end

    def tell_state(self) -> None:
        """How the node is now."""
        state = self.node.state()
        self._up.send(lambda at, held: self.gateway.dispatcher.state(self.node.key, state))

    def tell_deltas(self, deltas: Sequence[TokenDelta]) -> None:
        """What one step came to."""
        self._up.send(lambda at, held: self.gateway.deltas(self.node.key, deltas, at))

    def tell_leap(self, deltas: Sequence[TokenDelta], times: Times) -> None:
        """What a quiet stretch came to: a token at each of these times in each delta."""
        latency = self._settings.latency
        self._up.send(
            lambda at, held: self.gateway.leapt(self.node.key, deltas, times * 0 + at if held else times + latency)
        )

    def tell_lost(self, request_ids: Sequence[str], reason: str, present: bool) -> None:
        """Nothing more comes of these."""
        self._up.send(lambda at, held: self.gateway.lost(self.node.key, request_ids, reason, present))

    def _drop_orphans(self, boot: int) -> None:
        if self.node.hung:  # nothing passes there, time neither
            self._orphans[boot] = self._loop.after(self._settings.orphans, partial(self._drop_orphans, boot))
        else:
            del self._orphans[boot]
            self.node.disown(self, boot)

    # -- in between

    def cut(self, down: bool, up: bool) -> None:
        """One way or both."""
        self._down.cut |= down
        self._up.cut |= up
        self.look()

    def mend(self) -> None:
        """Whole again; what waited arrives."""
        self._down.mend()
        self._up.mend()
        self.look()

    def _sink(self, message: Action, at: float, _: bool) -> None:
        connection = self._connections
        self._loop.at(at, lambda: message() if self._connections == connection else None)

    def _rise(self, message: Upward, at: float, held: bool) -> None:
        if self.linked:
            message(at, held)

    def _heard_stats(self, numbers: InstanceStats) -> None:
        if self.linked:
            self.gateway.dispatcher.stats(self.node.key, numbers)
