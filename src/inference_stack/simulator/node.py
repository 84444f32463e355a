"""A node on virtual time: one device with one worker, whoever asks it for what, and all that can happen to it.

    worker   up ──kill──▶ dead: what was on it is lost ──load_seconds──▶ up
    node     up ──crash─▶ gone with its links ──load_seconds──▶ up      drain ─▶ nothing new ─leave─▶ the rest is lost; gone
             hang: nothing answers     slow, full: everything takes longer, memory is short

It goes on telling a gateway of what it computes for it, also over a new connection: telling attempts apart is the gateway's part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from inference_stack.core.fleet import ModelInfo, NodeState
from inference_stack.core.request import Request
from inference_stack.core.step import IntArray, TokenDelta
from inference_stack.kv.pool import BlockPool
from inference_stack.kv.slabs import SlabPool
from inference_stack.simulator.api import CostModel
from inference_stack.simulator.instance import Instance, Times
from inference_stack.simulator.line import Line
from inference_stack.simulator.loop import Action, Loop

Build = Callable[["Node"], tuple[Instance, SlabPool]]


class Run(NamedTuple):
    """A request on a node: the attempt at it, and for whom: over which line, and which of that gateway's processes."""

    attempt: int
    line: Line
    boot: int


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
    """One node. `build` makes its worker's instance, at first and after every death; `report` is how often routers hear of it, in
    seconds. `alive`: its process is there; `working`: its worker is ready too."""

    def __init__(
        self, number: int, loop: Loop, cost: CostModel, model: ModelInfo, build: Build, report: float = 0.25
    ) -> None:
        self.number = number
        self.key = str(number)
        self.lines: list[Line] = []
        self.runs: dict[str, Run] = {}
        self.alive = self.working = True
        self.hung = self.draining = False
        self._loop = loop
        self._cost = cost
        self._model = model
        self._build = build
        self._report_seconds = report
        self._reported, self._reported_waiting = -1.0, 0
        self._lives = 0
        self._busy_before = 0.0
        self._steps_before = self._preemptions_before = 0
        self.instance, self._slabs = build(self)
        self._hog = Hog(self._slabs)

    def state(self) -> NodeState:
        """What it tells of itself."""
        models = (self._model,) if self.working else ()
        boot = f"{self.number}/{self._lives}"
        return NodeState(node=self.key, ready=self.working, models=models, draining=self.draining, boot=boot)

    @property
    def sound(self) -> bool:
        """Whether nothing at all is wrong with it or its links."""
        return self.working and not self.hung and not self.draining and all(line.well for line in self.lines)

    # -- from gateways

    def greet(self, line: Line) -> None:
        """A gateway has attached."""
        line.tell_state()

    def submit(self, line: Line, boot: int, requests: Sequence[Request]) -> None:
        """Take requests, or say at once that nothing will come of them. Attempts that are not new are void."""
        new = [one for one in requests if one.id not in self.runs or self.runs[one.id].attempt < one.attempt]
        refusal = "draining" if self.draining else "" if self.working else "no worker is ready"
        if refusal:
            self._end(one.id for one in new)
            line.tell_lost([one.id for one in new], refusal, present=False)
            return
        self.instance.land()
        self.runs.update((one.id, Run(one.attempt, line, boot)) for one in new)
        self.instance.submit(new)

    def abort(self, line: Line, boot: int, request_ids: Iterable[str]) -> None:
        """Stop what this process asked for."""
        mine = self._of(line, boot)
        self._end(request_id for request_id in request_ids if request_id in mine)

    def disown(self, line: Line, boot: int) -> None:
        """A gateway's process has been gone for too long: stop what is computed for it."""
        self._end(self._of(line, boot))

    def _of(self, line: Line, boot: int) -> list[str]:
        return [request_id for request_id, run in self.runs.items() if run.line is line and run.boot == boot]

    def _end(self, request_ids: Iterable[str]) -> None:
        known = [request_id for request_id in request_ids if request_id in self.runs]
        if known:
            self.instance.land()
            self.instance.abort([request_id for request_id in known if self.runs.pop(request_id, None)])

    # -- news of the instance

    def deltas(self, deltas: Sequence[TokenDelta], now: float) -> None:
        """What one step came to."""
        parts = self._parts(deltas)
        for delta in deltas:
            if delta.finish is not None:
                del self.runs[delta.request_id]
        for line, part in parts:
            line.tell_deltas(part)
        self._report(now)

    def leapt(self, ids: Sequence[str], tokens_RK: IntArray, times: Times) -> None:
        """What a quiet stretch came to."""
        runs = self.runs
        deltas = [
            TokenDelta(request_id, runs[request_id].attempt, tuple(row))
            for request_id, row in zip(ids, tokens_RK.tolist(), strict=True)
        ]
        for line, part in self._parts(deltas):
            line.tell_leap(part, times)
        self._report(float(times[-1]))

    def _parts(self, deltas: Sequence[TokenDelta]) -> Iterable[tuple[Line, Sequence[TokenDelta]]]:
        """To each gateway its own."""
        if len(self.lines) == 1:
            return ((self.lines[0], deltas),)
        parts: dict[Line, list[TokenDelta]] = {}
        for delta in deltas:
            parts.setdefault(self.runs[delta.request_id].line, []).append(delta)
        return parts.items()

    def _report(self, now: float) -> None:
        """Routers hear now and then how it goes, and at once when the queue has changed."""
        waiting = self.instance.scheduler.waiting
        if waiting != self._reported_waiting or now - self._reported >= self._report_seconds:
            self._reported, self._reported_waiting = now, waiting
            numbers = self.instance.stats()
            for line in self.lines:
                line.reports.send(numbers)

    # -- fates

    def kill(self) -> None:
        """The worker dies. The node says so, and starts another."""
        if self.working and not self.hung:
            self.instance.stop()
            self.working = False
            self._tell_state()
            self._lose("the worker was killed", present=True)
            self._later(self._restarted)

    def crash(self) -> None:
        """The node's process dies, and its worker; connections close, and it is started again."""
        if self.alive:
            self.instance.stop()
            self.alive = self.working = self.hung = self.draining = False
            self._lives += 1
            self.runs.clear()
            for line in self.lines:
                line.break_off("its link closed")
            self._later(self._reborn)

    def drain(self) -> None:
        """Nothing new is taken from now on."""
        if self.alive and not self.draining:
            self.draining = True
            self._tell_state()

    def leave(self) -> None:
        """A drain's time is over: what is still here goes elsewhere, and the process ends; another is started."""
        if self.draining:
            self.instance.settle()
            self._lose("drained", present=False)
            self.crash()

    def hang(self) -> None:
        """Nothing answers; nobody is told."""
        if self.working and not self.hung:
            self.instance.hang()
            self.hung = True
            self._look()

    def wake(self) -> None:
        """It goes on as if nothing had been."""
        if self.hung:
            self.hung = False
            self.instance.resume()
            self._look()

    def cut(self, down: bool, up: bool) -> None:
        """Its links break, one way or both."""
        self.instance.settle()
        for line in self.lines:
            line.cut(down, up)

    def mend(self) -> None:
        """The links are whole again."""
        self.instance.settle()
        for line in self.lines:
            line.mend()

    def slow(self, slowness: float) -> None:
        """Everything takes so many times as long."""
        self.instance.set_slowness(slowness)

    def crowd(self, share: float) -> None:
        """Somebody else takes this share of the free memory; 0 gives it back."""
        if self.working:
            self.instance.settle()
            if share:
                self._hog.take(share)
            else:
                self._hog.give_back()

    # -- what it has done

    @property
    def busy_seconds(self) -> float:
        """Device time since the start, of all its workers."""
        return self._busy_before + self.instance.busy_seconds

    @property
    def steps(self) -> int:
        """Steps of all its workers."""
        return self._steps_before + self.instance.stats().steps

    @property
    def preemptions(self) -> int:
        """Preemptions in all its workers."""
        return self._preemptions_before + self.instance.stats().preemptions

    # -- inside

    def _look(self) -> None:
        for line in self.lines:
            line.look()

    def _tell_state(self) -> None:
        for line in self.lines:
            line.tell_state()

    def _lose(self, reason: str, present: bool) -> None:
        """Nothing more comes of anything that is here."""
        lost: dict[Line, list[str]] = {}
        for request_id, run in self.runs.items():
            lost.setdefault(run.line, []).append(request_id)
        self._end(list(self.runs))
        for line, ids in lost.items():
            line.tell_lost(ids, reason, present)

    def _later(self, action: Action) -> None:
        """When a worker has been loaded, unless something else has happened to the node by then."""
        life = self._lives
        self._loop.after(self._cost.load_seconds(), lambda: action() if self._lives == life else None)

    def _restarted(self) -> None:
        self._busy_before, self._steps_before = self.busy_seconds, self.steps
        self._preemptions_before = self.preemptions
        self.instance, self._slabs = self._build(self)
        self._hog = Hog(self._slabs)
        self.working = True
        self._tell_state()

    def _reborn(self) -> None:
        self.alive = True
        self._restarted()
        self._look()
