"""Small fleets for tests: one KV group, a linear cost model, arrivals by hand or by seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.scheduler.limits import SchedulerLimits
from inference_stack.simulator.api import Arrival, Segment
from inference_stack.simulator.fleet import FleetSpec, NodeSpec

GROUP = KvGroupSpec(name="full", layers=(0, 1), kv_heads=1, head_dim=16, dtype="float16")


@dataclass(frozen=True)
class Linear:
    """Seconds of a step."""

    base: float = 0.01
    per_token: float = 1e-4
    per_row: float = 1e-5
    per_context: float = 1e-7
    load: float = 5.0

    def step_seconds(self, tokens: int, rows: int, context: int, pairs: int) -> float:
        return self.base + self.per_token * tokens + self.per_row * rows + self.per_context * context

    def load_seconds(self) -> float:
        return self.load


@dataclass(frozen=True)
class Listed:
    """A workload written down."""

    arrivals: tuple[Arrival, ...]

    def __iter__(self) -> Iterator[Arrival]:
        return iter(self.arrivals)


def traffic(count: int, seed: int = 0, rate: float = 5.0, shared: float = 0.3, deadlines: bool = False) -> Listed:
    """Random arrivals: lengths up to a few hundred tokens, some with a common beginning."""
    chance, at, arrivals = random.Random(seed), 0.0, []
    for number in range(count):
        at += chance.expovariate(rate)
        head = (Segment(7, 0, 64),) if chance.random() < shared else ()
        deadline = chance.uniform(0.05, 30.0) if deadlines and chance.random() < 0.3 else None
        arrivals.append(
            Arrival(
                number=number,
                at=at,
                prompt=(*head, Segment(1000 + number, 0, chance.randint(1, 300))),
                output_tokens=chance.randint(1, 120),
                seed=chance.getrandbits(64),
                tenant=chance.choice("ab"),
                priority=chance.choice((0, 0, 100, -100)),
                deadline=deadline,
            )
        )
    return Listed(tuple(arrivals))


def spec(workload: Listed, nodes: int = 2, blocks: int = 400, **changes: Any) -> FleetSpec:
    """A fleet of equal nodes with this many KV blocks each."""
    limits = SchedulerLimits(max_running=16, max_batch_tokens=128, max_model_len=1024)
    kind = NodeSpec(count=nodes, cost=Linear(), kv_bytes=blocks * GROUP.block_bytes, dollars_per_hour=2.0)
    plain: dict[str, Any] = {"nodes": (kind,), "groups": (GROUP,), "limits": limits, "workload": workload} | changes
    return FleetSpec(**plain)
