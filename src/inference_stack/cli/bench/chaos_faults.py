"""What can go wrong, and how it is done to a fleet: each fault strikes one victim, lasts a while, and is undone.

worker, node, gateway   kill -9, stop (SIGSTOP), slow (runs a tenth of the time), full disk
node, gateway           restart (SIGTERM, wait, start); node also: drain
link                    cut (reset), partition, one way up or down, slow
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from inference_stack.cli.bench.chaos_fleet import Fleet
from inference_stack.cli.bench.chaos_members import GatewayMember, Member, NodeMember, full_disk
from inference_stack.cli.bench.chaos_proxy import Wire

SUPERVISOR_SECONDS = 0.5
"""After this long, whoever supervises a node or a gateway starts it again."""
RUN_SECONDS, PAUSE_SECONDS = 0.01, 0.09
"""Of a process that is ten times slower."""
SLOW_DELAY, SLOW_RATE = 0.1, 20_000.0
EXIT_SECONDS = 45.0
LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Victim:
    """Whom a fault strikes: a node (or its worker), a gateway, or the wire between the two."""

    name: str
    node: NodeMember | None = None
    gateway: GatewayMember | None = None
    wire: Wire | None = None

    @property
    def member(self) -> Member:
        """The process that is in trouble: of a link, the node."""
        found = self.node or self.gateway
        if found is None:
            raise LookupError(f"{self.name} is no process")
        return found


class Striker:
    """Does things to a fleet. Each method returns when what it did is undone; what was killed may still be starting then."""

    def __init__(self, fleet: Fleet, hold: float) -> None:
        self._fleet = fleet
        self._hold = hold
        self.disks_full: set[int] = set()

    # -- processes

    async def kill(self, victim: Victim) -> None:
        """kill -9. A worker is its node's to replace; the others are started again by us."""
        for pid in self._pids(victim):
            _signal(pid, signal.SIGKILL)
        if not victim.name.endswith("worker"):
            await self._wait_exit(victim.member)
            await asyncio.sleep(SUPERVISOR_SECONDS)
            victim.member.start()

    async def stop(self, victim: Victim) -> None:
        """SIGSTOP, and SIGCONT after a while, if it is still there."""
        pids = self._pids(victim)
        for pid in pids:
            _signal(pid, signal.SIGSTOP)
        await asyncio.sleep(self._hold)
        for pid in pids:
            _signal(pid, signal.SIGCONT)

    async def slow(self, victim: Victim) -> None:
        """It runs a tenth of the time."""
        pids = self._pids(victim)
        for _ in range(round(self._hold / (RUN_SECONDS + PAUSE_SECONDS))):
            for number, seconds in ((signal.SIGSTOP, PAUSE_SECONDS), (signal.SIGCONT, RUN_SECONDS)):
                for pid in pids:
                    _signal(pid, number)
                await asyncio.sleep(seconds)

    async def full_disk(self, victim: Victim) -> None:
        """It can write to no file: logs, recordings."""
        pids = self._pids(victim)
        self.disks_full.update(pids)
        for pid in pids:
            full_disk(pid, True)
        await asyncio.sleep(self._hold)
        for pid in pids:
            full_disk(pid, False)

    async def restart(self, victim: Victim) -> None:
        """SIGTERM, wait until it has ended by itself, start it again."""
        victim.member.signal(signal.SIGTERM)
        await self._wait_exit(victim.member)
        victim.member.start()

    async def drain(self, victim: Victim) -> None:
        """Over the administrators' API; taken back when nothing is left there, or after a while."""
        if victim.node is None or not await self._fleet.order(victim.node, "drain", {"seconds": self._hold / 2}):
            raise LookupError(f"no gateway can drain {victim.name}")
        await asyncio.sleep(self._hold)
        while not await self._fleet.order(victim.node, "undrain"):
            await asyncio.sleep(LOOK_SECONDS)

    # -- links

    async def cut(self, victim: Victim) -> None:
        """Every connection is reset."""
        self._wire(victim).cut()

    async def partition(self, victim: Victim) -> None:
        """Nothing gets through in either direction."""
        await self._held(victim, up=True, down=True)

    async def one_way_up(self, victim: Victim) -> None:
        """The node hears nothing; the gateway does."""
        await self._held(victim, up=True, down=False)

    async def one_way_down(self, victim: Victim) -> None:
        """The gateway hears nothing; the node does."""
        await self._held(victim, up=False, down=True)

    async def slow_link(self, victim: Victim) -> None:
        """Everything comes late and little by little."""
        wire = self._wire(victim)
        wire.slow(SLOW_DELAY, SLOW_RATE)
        await asyncio.sleep(self._hold)
        wire.mend()

    # -- inside

    async def _held(self, victim: Victim, up: bool, down: bool) -> None:
        wire = self._wire(victim)
        wire.hold(up, down)
        await asyncio.sleep(self._hold)
        wire.mend()

    def _wire(self, victim: Victim) -> Wire:
        if victim.wire is None:
            raise LookupError(f"{victim.name} is no link")
        return victim.wire

    def _pids(self, victim: Victim) -> list[int]:
        if victim.name.endswith("worker") and victim.node is not None:
            return victim.node.workers()
        return [victim.member.pid]

    async def _wait_exit(self, member: Member) -> None:
        """Raises `TimeoutError` should it not end."""
        async with asyncio.timeout(EXIT_SECONDS):
            while member.status is None:
                await asyncio.sleep(LOOK_SECONDS)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


Strike = Callable[[Striker, Victim], Awaitable[None]]
FAULTS: Final[Mapping[str, Strike]] = {
    "worker/kill": Striker.kill,
    "worker/stop": Striker.stop,
    "worker/slow": Striker.slow,
    "worker/full disk": Striker.full_disk,
    "node/kill": Striker.kill,
    "node/stop": Striker.stop,
    "node/slow": Striker.slow,
    "node/full disk": Striker.full_disk,
    "node/drain": Striker.drain,
    "node/restart": Striker.restart,
    "gateway/kill": Striker.kill,
    "gateway/stop": Striker.stop,
    "gateway/slow": Striker.slow,
    "gateway/full disk": Striker.full_disk,
    "gateway/restart": Striker.restart,
    "link/cut": Striker.cut,
    "link/partition": Striker.partition,
    "link/one way up": Striker.one_way_up,
    "link/one way down": Striker.one_way_down,
    "link/slow": Striker.slow_link,
}
SILENT: Final = ("node/stop", "link/partition", "link/one way up", "link/one way down")
HARMLESS: Final = ("gateway/full disk", "gateway/slow")
"""What a gateway's stock clients must not notice as failures."""
