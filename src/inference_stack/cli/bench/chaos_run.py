"""The run: undisturbed answers first, then traffic and, one after another, faults that hit it.

    answers ─▶ traffic ═══════════════════════════════▶ the rest ends ─▶ account
                  └─ fault, every few seconds: choose a victim whose death leaves a way, note whom it hits, strike, undo

A fault that finds no stream at its victim does not count. Victims and order come from the seed.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inference_stack.cli.bench.chaos_account import account
from inference_stack.cli.bench.chaos_faults import FAULTS, HARMLESS, Striker, Victim
from inference_stack.cli.bench.chaos_fleet import Fleet
from inference_stack.cli.bench.chaos_proxy import Proxy
from inference_stack.cli.bench.chaos_requests import catalogue
from inference_stack.cli.bench.chaos_spec import Fault, Plan
from inference_stack.cli.bench.chaos_traffic import Traffic, undisturbed
from inference_stack.core.errors import ErrorInfo, InferenceError, invalid
from inference_stack.core.seams import Clock

LOOK_SECONDS = 0.1
PATIENCE_SECONDS = 60.0
"""How long a fleet may take to be fit for the next fault."""
WARM_SECONDS = 1.0
END_SECONDS = 120.0

Tell = Callable[[str], None]


class Chaos:
    """Faults on a fleet under traffic."""

    def __init__(self, plan: Plan, fleet: Fleet, traffic: Traffic, clock: Clock, tell: Tell) -> None:
        self.faults: list[Fault] = []
        self.missed = 0
        self._plan = plan
        self._fleet = fleet
        self._traffic = traffic
        self._clock = clock
        self._tell = tell
        self._dice = random.Random(f"faults {plan.seed}")
        self._striker = Striker(fleet, plan.hold)
        self._comebacks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Strike until enough faults have hit. Raises `InferenceError` when the fleet does not get fit for the next."""
        kinds: list[str] = []
        due = self._clock.now() + WARM_SECONDS
        while sum(bool(fault.hit) for fault in self.faults) < self._plan.faults:
            kinds = kinds or self._round()
            await asyncio.sleep(max(0.0, due - self._clock.now()))
            due = max(due, self._clock.now()) + self._plan.every
            if not await self._strike(kinds[0]):
                self.missed += 1
                due = self._clock.now() + LOOK_SECONDS
                kinds.append(kinds[0])
            kinds.pop(0)
        await asyncio.gather(*self._comebacks)

    def _round(self) -> list[str]:
        """Every kind once, in an order of its own."""
        named = [kind.strip() for kind in self._plan.kinds.split(",") if kind.strip()]
        return self._dice.sample(named or list(FAULTS), len(named or FAULTS))

    async def _strike(self, kind: str) -> bool:
        """One fault; whether it hit any stream."""
        victim = await self._victim(kind)
        if victim is None:
            return False
        fault = Fault(number=len(self.faults), kind=kind, victim=victim.name, begin=self._clock.now())
        fault.hit = await self._there(victim)
        fault.begin = self._clock.now()
        self._fleet.troubled.add(victim.member.name)
        try:
            await FAULTS[kind](self._striker, victim)
        finally:
            fault.end = self._clock.now()
            comeback = asyncio.create_task(self._comeback(fault, victim))
            self._comebacks.add(comeback)
            comeback.add_done_callback(self._comebacks.discard)
        fault.hit = [record for record in fault.hit if not record.end or record.end > fault.begin]
        if fault.hit or victim.node is None:  # a gateway's clients may come to feel it all the same
            self.faults.append(fault)
            self._tell(f"{len(self.faults):3d}  {kind:18s} {victim.name:10s} {len(fault.hit):3d} streams")
        return bool(fault.hit)

    async def _comeback(self, fault: Fault, victim: Victim) -> None:
        """Until it can be used again, nothing else is done to it."""
        while not self._sound(victim):
            await asyncio.sleep(LOOK_SECONDS)
        fault.again = self._clock.now()
        self._fleet.troubled.discard(victim.member.name)

    def _sound(self, victim: Victim) -> bool:
        """Whether all gateways that serve can use it, or it serves itself."""
        fleet = self._fleet
        if victim.node is None:
            return victim.gateway is not None and fleet.views[victim.gateway.name].ready
        serving = [gateway for gateway in fleet.gateways if fleet.views[gateway.name].ready]
        return bool(serving) and all(fleet.usable(gateway, victim.node) for gateway in serving)

    # -- choosing

    async def _victim(self, kind: str) -> Victim | None:
        """Somebody whose loss leaves a gateway and a node, with streams on it; None where nobody has any."""
        end = self._clock.now() + PATIENCE_SECONDS
        while not (candidates := self._candidates(kind)):
            if self._clock.now() > end:
                raise InferenceError(ErrorInfo(message=f"the fleet did not get fit for {kind}", status=500))
            await asyncio.sleep(LOOK_SECONDS)
        self._dice.shuffle(candidates)
        for victim in candidates:
            if await self._there(victim) and await self._worth(kind, victim):
                return victim
        return None

    def _candidates(self, kind: str) -> list[Victim]:
        fleet, role = self._fleet, kind.partition("/")[0]
        nodes, gateways = fleet.sound_nodes(), fleet.sound_gateways()
        if len(nodes) < 2 or not gateways or (role == "gateway" and len(gateways) < 2):
            return []
        if role == "gateway":
            return [Victim(gateway.name, gateway=gateway) for gateway in gateways]
        if role == "link":
            pairs = [(gateway, node) for gateway in gateways for node in nodes]
            return [Victim(f"{g.name}-{n.name}", node=n, gateway=g, wire=n.wires[g.name]) for g, n in pairs]
        suffix = "'s worker" if role == "worker" else ""
        return [Victim(f"{node.name}{suffix}", node=node) for node in nodes]

    async def _there(self, victim: Victim) -> list[Any]:
        """The records of the streams that are at the victim now."""
        active = list(self._traffic.active.values())
        if victim.node is None:
            return [record for record in active if victim.gateway is not None and record.gateway == victim.gateway.name]
        asked = [victim.gateway] if victim.gateway is not None else self._fleet.sound_gateways()
        ids = await self._fleet.where(victim.node, asked)
        return [record for record in active if record.id in ids]

    async def _worth(self, kind: str, victim: Victim) -> bool:
        """A full disk under a worker is only felt while the worker records."""
        if kind != "worker/full disk" or victim.node is None:
            return True
        before = victim.node.recorded_bytes()
        await asyncio.sleep(1.2)
        return victim.node.recorded_bytes() > before


async def run(plan: Plan, clock: Clock, tell: Tell) -> dict[str, Any]:
    """The account of a run. Raises `InferenceError` when the fleet does not start, or never recovers."""
    unknown = [kind for kind in map(str.strip, plan.kinds.split(",")) if kind and kind not in FAULTS]
    if unknown:
        raise invalid(f"there is no fault {unknown[0]!r}; there are {', '.join(FAULTS)}", param="kinds")
    with tempfile.TemporaryDirectory(prefix="istack-chaos-") as temporary, Proxy() as proxy:
        folder = Path(plan.logs or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        fleet = Fleet(plan, folder, proxy)
        async with fleet.running():
            return await _broken(plan, fleet, clock, tell)


async def _broken(plan: Plan, fleet: Fleet, clock: Clock, tell: Tell) -> dict[str, Any]:
    dice = random.Random(f"requests {plan.seed}")
    cases = catalogue(plan.model, plan.cases, plan.shortest, plan.longest, dice)
    tell(f"the fleet is ready; asking {len(cases)} requests while nothing is broken")
    answers = await undisturbed(fleet.gateways[0].url, cases)
    urls = {gateway.name: gateway.url for gateway in fleet.gateways}
    traffic = Traffic(answers, urls, lambda name: fleet.views[name].ready, clock, dice)
    chaos = Chaos(plan, fleet, traffic, clock, tell)
    begin = clock.now()
    clients = asyncio.create_task(traffic.run(plan.streams, round(plan.streams * plan.resuming)))
    try:
        await chaos.run()
        await asyncio.sleep(WARM_SECONDS)
    finally:
        traffic.stop()
        async with asyncio.timeout(END_SECONDS):
            await clients
    for gateway in fleet.gateways:
        await fleet.read_counts(gateway)
    counts = {name: fleet.count(name) for name in ("moves", "mismatches", "resumes")}
    return account(plan, traffic.records, chaos.faults, counts, clock.now() - begin, chaos.missed, HARMLESS)
