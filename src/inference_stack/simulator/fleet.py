"""A fleet on virtual time, put together and run: gateway, router, links, nodes, workload, faults; the result is an `api.Run`.

FleetSpec ─▶ Fleet.run() ─▶ Run          interrupted: the partial Run, marked as such
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from typing import Any

from inference_stack.core.fleet import ModelInfo
from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.dispatch.dispatcher import Limits
from inference_stack.kv.manager import KvManager
from inference_stack.kv.slabs import ArenaGeometry, SlabPool, slab_size
from inference_stack.scheduler.limits import SchedulerLimits
from inference_stack.scheduler.scheduler import Scheduler
from inference_stack.simulator.api import CostModel, Run, Workload
from inference_stack.simulator.clients import Broken, Clients
from inference_stack.simulator.cost.speed import timed
from inference_stack.simulator.faults import FaultPlan, Fury
from inference_stack.simulator.gateway import Gateway
from inference_stack.simulator.instance import Instance
from inference_stack.simulator.invariants import check_gateways, check_nodes, check_progress, check_rest
from inference_stack.simulator.ledger import ITL_EDGES, Ledger
from inference_stack.simulator.line import Line, LinkSettings
from inference_stack.simulator.loop import Loop
from inference_stack.simulator.node import Node

AHEAD = 64
"""Arrivals that are looked at before their time: a workload is never in memory as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """A kind of node: `count` of them, each with `kv_bytes` of KV memory, at `dollars_per_hour` (None: unknown)."""

    count: int
    cost: CostModel
    kv_bytes: int
    dollars_per_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSpec:
    """Everything that a run depends on. `checks` verifies invariants so often, in seconds (0: only at the
    end); who then waited on a healthy node for more than `patience` seconds is starved."""

    nodes: tuple[NodeSpec, ...]
    groups: tuple[KvGroupSpec, ...]
    limits: SchedulerLimits
    workload: Workload
    vocab_size: int = 32_000
    depth: int = 1
    prefix_cache: bool = True
    affinity: bool = True
    leaping: bool = True
    max_queue: int = 1 << 20
    recovery_tokens: int = 16384
    gateways: int = 1
    link: LinkSettings = LinkSettings()
    faults: FaultPlan | None = None
    interval: float = 10.0
    checks: float = 0.0
    patience: float = 600.0
    seed: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    model: str = "model"

    @property
    def node_count(self) -> int:
        """Nodes of all kinds."""
        return sum(kind.count for kind in self.nodes)


class Fleet:
    """One run. `progress` is told the virtual time now and then."""

    def __init__(self, spec: FleetSpec, progress: Callable[[float], None] = lambda now: None) -> None:
        self.spec = spec
        self.loop = Loop()
        self.ledger = Ledger(spec.interval)
        self._progress = progress
        self.clients = Clients(self.loop, self.ledger, spec.model, spec.vocab_size, spec.affinity)
        limits = Limits(
            max_queue=spec.max_queue,
            recovery_tokens=spec.recovery_tokens,
            chunk_tokens=spec.limits.max_batch_tokens,
        )
        names = [f"gateway {number}" for number in range(spec.gateways)]
        self.gateways = [Gateway(name, self.loop, self.clients, limits) for name in names]
        self.nodes: list[Node] = []
        for place, kind in enumerate(spec.nodes):
            for _ in range(kind.count):
                self._add_node(kind, f"kind {place}")
        self._fury = Fury(spec.faults, self.loop, self.nodes, self.gateways, self.ledger) if spec.faults else None
        self._arrivals = iter(spec.workload)
        self._exhausted = False
        self._waiting_arrivals = 0
        self._signs, self._signs_since = (0, 0, 0), 0.0

    # -- parts

    def _add_node(self, kind: NodeSpec, numerics: str) -> None:
        number, spec = len(self.nodes), self.spec
        model = self._model(kind, numerics)
        node = Node(number, self.loop, kind.cost, model, lambda node: self._instance(node, kind), spec.link.report)
        for place, gateway in enumerate(self.gateways):
            chance = random.Random(f"{spec.seed}/{number}/{place}")
            line = gateway.lines[node.key] = Line(self.loop, gateway, node, spec.link, chance)
            node.lines.append(line)
            line.start()
        self.nodes.append(node)

    def _model(self, kind: NodeSpec, numerics: str) -> ModelInfo:
        spec = self.spec
        return ModelInfo(
            name=spec.model,
            architecture="simulated",
            numerics_id=numerics,
            max_model_len=spec.limits.max_model_len,
            vocab_size=spec.vocab_size,
            eos_tokens=(),
            kv_groups=spec.groups,
            kv_blocks=kind.kv_bytes // sum(group.block_bytes for group in spec.groups),
            max_running=spec.limits.max_running,
            step_time=timed(kind.cost),
        )

    def _instance(self, node: Node, kind: NodeSpec) -> tuple[Instance, SlabPool]:
        spec = self.spec
        choice = slab_size(spec.groups, kind.kv_bytes)
        slabs = SlabPool(ArenaGeometry(slab_bytes=choice.slab_bytes, slab_count=choice.slab_count))
        kv = KvManager(spec.model, spec.groups, slabs, prefix_cache=spec.prefix_cache, events_capacity=1)
        scheduler = Scheduler(spec.limits, kv, prior=timed(kind.cost))
        return Instance(scheduler, kind.cost, self.loop, node, spec.vocab_size, spec.depth, spec.leaping), slabs

    # -- the run

    def run(self, until: float = inf) -> Run:
        """Until all arrivals have ended, or to a time. `KeyboardInterrupt` ends it early: the partial run."""
        began, complete = time.perf_counter(), True
        self._feed()
        self.loop.after(self.spec.interval, self._sample)
        if self.spec.checks:
            self.loop.after(self.spec.checks, self._check)
        try:
            while self._open and self.loop.now() < until:
                self._advance(until)
            complete = not self._open
        except KeyboardInterrupt:
            complete = False
        found = self._result(complete, time.perf_counter() - began)
        if complete and until == inf:
            self._come_to_rest()
        return found

    @property
    def _orphaned(self) -> bool:
        """Whether anything is still computed for a gateway that is gone."""
        return any(node.runs and any(line.orphaning for line in node.lines) for node in self.nodes)

    @property
    def _open(self) -> bool:
        """Whether anybody still comes, or waits."""
        return bool(self._waiting_arrivals or not self._exhausted or self.clients.streams)

    def _advance(self, until: float) -> None:
        for _ in range(1000):
            if not self._open:
                break
            if self.loop.next_due > until or not self.loop.step():
                self.loop.run(until) if until < inf else None
                break
        self._progress(self.loop.now())

    def _come_to_rest(self) -> None:
        """No more faults; those that struck pass, and what is under way arrives; then nothing may be held."""
        if self._fury is not None:
            self._fury.over = True
            while self._fury.struck or not all(node.sound for node in self.nodes) or self._orphaned:
                self.loop.step()
        self.loop.run(self.loop.now() + 4 * self.spec.link.latency)
        while any(node.sound and node.instance.retiring for node in self.nodes):
            self.loop.step()
        check_rest(self.clients, self.nodes, self.ledger)

    def _feed(self) -> None:
        """Have the next arrivals expected, and come again when the first of them is there: there is always a batch ahead."""
        batch = list(islice(self._arrivals, AHEAD))
        self._exhausted = len(batch) < AHEAD
        self._waiting_arrivals += len(batch)
        for arrival in batch:
            self.clients.expect(arrival, self._came)
        if not self._exhausted:
            first = next((arrival.at for arrival in batch if arrival.follows is None), self.loop.now())
            self.loop.at(first, self._feed)

    def _came(self) -> None:
        self._waiting_arrivals -= 1

    def _sample(self) -> None:
        """The fleet at the end of an interval, as long as there is something to see. Raises `Broken` when all stands still."""
        self._note()
        signs = (self.ledger.tokens, len(self.ledger.outcomes), sum(node.steps for node in self.nodes))
        if signs != self._signs:
            self._signs, self._signs_since = signs, self.loop.now()
        elif self.clients.streams and self.loop.now() - self._signs_since > self.spec.patience:
            raise Broken(
                f"{len(self.clients.streams)} requests are open, and nothing has happened for {self.spec.patience:g} s"
            )
        if self._open:
            self.loop.after(self.spec.interval, self._sample)

    def _note(self) -> None:
        for node in self.nodes:
            node.instance.settle()
        stats = [node.instance.stats() for node in self.nodes if node.working]
        self.ledger.sample(
            {
                "running": sum(one.running for one in stats),
                "waiting": sum(one.waiting for one in stats),
                "kv_used": sum(one.kv_blocks_used for one in stats),
                "kv_total": sum(one.kv_blocks_total for one in stats),
                "nodes": len(stats),
            },
            sum(node.busy_seconds for node in self.nodes),
        )

    def _check(self) -> None:
        check_nodes(self.nodes)
        check_gateways(self.gateways)
        check_progress(self.clients, self.nodes, self.loop.now(), self.spec.patience)
        self.loop.after(self.spec.checks, self._check)

    def _result(self, complete: bool, wall: float) -> Run:
        self._note()
        for stream in self.clients.streams.values():
            stream.outcome.output_tokens = stream.seen
        seconds = self.loop.now()
        rates = [kind.dollars_per_hour for kind in self.spec.nodes]
        hours = seconds / 3600
        dollars = None
        if all(rate is not None for rate in rates):
            dollars = hours * sum((kind.dollars_per_hour or 0.0) * kind.count for kind in self.spec.nodes)
        return Run(
            config=self.spec.config,
            seconds=seconds,
            outcomes=self.ledger.outcomes,
            series=self.ledger.series(),
            itl_edges=ITL_EDGES,
            itl_counts=self.ledger.itl,
            steps=sum(node.steps for node in self.nodes),
            preemptions=sum(node.preemptions for node in self.nodes),
            events=list(self.ledger.events),
            service=dict(self.ledger.service),
            node_hours=hours * self.spec.node_count,
            dollars=dollars,
            complete=complete,
            wall_seconds=wall,
        )
