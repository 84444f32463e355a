"""A node on virtual time: one device with one model instance, its links to the gateways, and all that can happen to it.

up ──kill──▶ gone ──load_seconds──▶ up        hang ─▶ silent ─▶ given up by the gateways ─▶ reconciled when it is back
cut: the link is, one way or both; what was sent waits or is lost      slow, full: everything takes longer, memory is short
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from inference_stack.core.request import Request
from inference_stack.core.stats import InstanceStats
from inference_stack.core.step import IntArray, TokenDelta
from inference_stack.kv.pool import BlockPool
from inference_stack.kv.slabs import SlabPool
from inference_stack.simulator.api import CostModel
from inference_stack.simulator.gateway import Gateway
from inference_stack.simulator.instance import Instance, Times
from inference_stack.simulator.link import Drizzle, Pipe
from inference_stack.simulator.loop import Loop, Timer

Build = Callable[["Node"], tuple[Instance, SlabPool]]
Upward = tuple[list[TokenDelta], float] | tuple[list[str], IntArray, Times]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """Seconds: one way between gateway and node; of silence until a node is given up; between reports to routers."""

    latency: float = 0.0002
    silence: float = 2.0
    report: float = 0.25


class Hog:
    """Somebody else's claim on a node's KV memory: takes every slab that nobody uses, gives all back."""

    def __init__(self, slabs: SlabPool) -> None:
        self._pool = BlockPool("hog", 1, slabs, principal=self, evicted=lambda names: None)
        self._taken: list[int] = []

    def take(self, share: float) -> None:
        """Take this share of what can be had."""
        for _ in range(int(self._pool.obtainable() * share)):
            block = self._pool.take()
            if block is None:
                return
            self._taken.append(block)

    def give_back(self) -> None:
        """Leave."""
        self._pool.release_many(self._taken, None)
        self._taken.clear()


class Node:
    """One node. `build` makes its instance, at first and after every death."""

    def __init__(
        self,
        number: int,
        loop: Loop,
        gateway: Gateway,
        cost: CostModel,
        build: Build,
        settings: LinkSettings,
    ) -> None:
        self.number = number
        self.alive = True
        self.given_up = False
        self.hung = False
        self.busy_before = 0.0
        self.steps_before = self.preemptions_before = 0
        self.reports: Drizzle[InstanceStats] | None = None
        self._loop = loop
        self._gateway = gateway
        self._cost = cost
        self._build = build
        self._settings = settings
        self._down: Pipe[Request] = Pipe(loop, settings.latency, self._arrives)
        self._up: Pipe[Upward] = Pipe(loop, settings.latency, self._departs)
        self._watch: Timer | None = None
        self._reported, self._reported_waiting = -1.0, 0
        self.instance, self._slabs = build(self)
        self._hog = Hog(self._slabs)

    # -- the gateway's side

    def send(self, message: Request) -> None:
        """A request."""
        self._down.send(message)

    def _arrives(self, message: Request, at: float, _: bool) -> None:
        life = self.instance
        self._loop.at(at, lambda: self._take(message, life))

    def _take(self, message: Request, life: Instance) -> None:
        if self.instance is not life or not self.alive:
            return  # sent to an earlier life: the gateway knows that it ended
        self.instance.submit(message)

    def _departs(self, message: Upward, at: float, held: bool) -> None:
        if self.given_up:
            return
        if len(message) == 2:
            self._gateway.deltas(self.number, message[0], at)
        else:
            ids, tokens_RK, times = message
            arrive = np.full_like(times, at) if held else times + self._settings.latency
            self._gateway.leapt(self.number, ids, tokens_RK, arrive)

    # -- news of the instance

    def deltas(self, deltas: list[TokenDelta], now: float) -> None:
        """What one step came to."""
        self._up.send((deltas, now))
        self._report(now)

    def leapt(self, ids: list[str], tokens_RK: IntArray, times: Times) -> None:
        """What a quiet stretch came to."""
        self._up.send((ids, tokens_RK, times))
        self._report(float(times[-1]))

    def _report(self, now: float) -> None:
        """Routers hear now and then how it goes, and at once when the queue has changed."""
        waiting = self.instance.scheduler.waiting
        due = waiting != self._reported_waiting or now - self._reported >= self._settings.report
        if due and self.reports is not None:
            self._reported, self._reported_waiting = now, waiting
            self.reports.send(self.instance.stats())

    # -- fates

    def kill(self) -> None:
        """The process dies; its connections close, and another is started."""
        if not self.alive:
            return
        self.instance.stop()
        self.alive = self.hung = False
        self._stop_watching()
        self._drop_links()
        self._give_up()
        self._loop.after(self._cost.load_seconds(), self._reborn)

    def hang(self) -> None:
        """Nothing answers; nobody is told."""
        if self.alive and not self.hung:
            self.instance.hang()
            self.hung = True
            self._fall_silent()

    def wake(self) -> None:
        """It goes on as if nothing had been."""
        if self.alive and self.hung:
            self.hung = False
            self.instance.resume()
            self._speak_again()

    def cut(self, down: bool, up: bool) -> None:
        """The link breaks, one way or both."""
        if not self.alive:
            return
        self.instance.settle()
        self._down.cut |= down
        self._up.cut |= up
        if up:
            self._fall_silent()

    def mend(self) -> None:
        """The link is whole again."""
        if self.alive:
            self.instance.settle()
            self._down.mend()
            self._up.mend()
            if not self.hung:
                self._speak_again()

    def slow(self, slowness: float) -> None:
        """Everything takes so many times as long."""
        if self.alive:
            self.instance.set_slowness(slowness)

    def crowd(self, share: float) -> None:
        """Somebody else takes this share of the free memory; 0 gives it back."""
        if self.alive:
            self.instance.settle()
            if share:
                self._hog.take(share)
            else:
                self._hog.give_back()

    @property
    def silent(self) -> bool:
        """Nothing is heard of it, and it has not been given up yet."""
        return self._watch is not None

    @property
    def busy_seconds(self) -> float:
        """Device time since the start, of all its lives."""
        return self.busy_before + self.instance.busy_seconds

    @property
    def steps(self) -> int:
        """Steps of all its lives."""
        return self.steps_before + self.instance.stats().steps

    @property
    def preemptions(self) -> int:
        """Preemptions in all its lives."""
        return self.preemptions_before + self.instance.stats().preemptions

    # -- inside

    def _fall_silent(self) -> None:
        if self._watch is None:
            self._watch = self._loop.after(self._settings.silence, self._silent_too_long)

    def _silent_too_long(self) -> None:
        self._watch = None
        self.instance.settle()
        self._drop_links()
        self._give_up()

    def _speak_again(self) -> None:
        self._stop_watching()
        if self.given_up:
            self._reconcile()

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _give_up(self) -> None:
        if not self.given_up:
            self.given_up = True
            self._gateway.lost(self.number)

    def _drop_links(self) -> None:
        """Connections are reset: what waited in them is lost. A cut stays a cut."""
        for pipe in (self._down, self._up):
            cut = pipe.cut
            pipe.reset()
            pipe.cut = cut and self.alive

    def _reconcile(self) -> None:
        """Back after it was given up: it forgets whatever it still computed for streams that went elsewhere."""
        if self._up.cut or self._down.cut:
            return
        for request_id in self.instance.scheduler.request_ids():
            self.instance.abort(request_id)
        self.given_up = False
        self._gateway.back(self.number)

    def _reborn(self) -> None:
        self.busy_before, self.steps_before, self.preemptions_before = self.busy_seconds, self.steps, self.preemptions
        self.instance, self._slabs = self._build(self)
        self._hog = Hog(self._slabs)
        self.alive, self.given_up = True, False
        self._gateway.back(self.number)
