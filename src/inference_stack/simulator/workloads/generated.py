"""A workload from an arrival process, a content and tenants.

Everything is drawn from one seed while it is asked for: nothing is stored, and each iteration is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from inference_stack.simulator.api import Arrival
from inference_stack.simulator.workloads.contents import Ask, Content
from inference_stack.simulator.workloads.processes import Process
from inference_stack.simulator.workloads.streams import Streams
from inference_stack.simulator.workloads.tenants import Tenant, TenantMix


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """Sessions of `content`, started by `process`, for `duration` seconds or until `limit` arrivals.

    The process' rate counts requests: sessions of several turns begin that much more rarely. `scale` multiplies it. Turns after
    the first come at their own time, also behind `duration`. The tenant is drawn for each session.
    """

    process: Process
    content: Content
    tenants: tuple[Tenant, ...] = ()
    duration: float = math.inf
    limit: int | None = None
    scale: float = 1.0
    seed: int = 0

    def __iter__(self) -> Iterator[Arrival]:
        # Three generators, so that another content or another mix of tenants leaves the arrival times as they are.
        when, what, who = (np.random.default_rng([self.seed, part]) for part in range(3))
        tenants, sessions = TenantMix(self.tenants), self.content.sessions(Streams(self.seed), what)
        number = 0
        for at in self.process.times(when, self.scale / self.content.mean_turns()):
            if at >= self.duration:
                return
            tenant = tenants.draw(who)
            for turn, ask in enumerate(next(sessions)):
                if number == self.limit:
                    return
                yield arrival(number, ask, tenant, at if turn == 0 else ask.pause, number - 1 if turn else None)
                number += 1


def arrival(number: int, ask: Ask, tenant: Tenant, at: float, follows: int | None = None) -> Arrival:
    """That request, of that tenant, at that time (or that long after `follows` has ended)."""
    return Arrival(
        number=number,
        at=at,
        prompt=ask.prompt,
        output_tokens=ask.output_tokens,
        seed=ask.seed,
        follows=follows,
        tenant=tenant.name,
        weight=tenant.weight,
        priority=tenant.priority,
        ttft_deadline=tenant.ttft_deadline,
        deadline=tenant.deadline,
    )
