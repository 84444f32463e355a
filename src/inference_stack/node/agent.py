"""The agent of one machine: passes gateways' requests to its workers and tokens to their owners, and tells of every change.

    gateway A ═ link ═╗              ╔═ slot 0: supervisor ─ worker process
    gateway B ═ link ═╬═ exchange ═══╬═ slot 1: supervisor ─ worker process
       (gone) orphans ╝  placement   ╚═ …

It looks at requests' identities, never at what they say; what is lost with a worker is its gateway's to continue.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, Final

from inference_stack.config.derive import nth_device, on_gpu, settled
from inference_stack.config.tree import Config
from inference_stack.core.fleet import NodeState
from inference_stack.core.seams import Clock, Link
from inference_stack.core.stats import GpuStats
from inference_stack.node import devices, state
from inference_stack.node.exchange import Exchange
from inference_stack.node.gateways import GatewayLink
from inference_stack.node.gpus import GpuReader
from inference_stack.node.models import ModelChanges
from inference_stack.node.orphans import Orphans
from inference_stack.node.placement import Placement, Slot
from inference_stack.node.spawn import Spawned
from inference_stack.node.supervisor import Supervisor
from inference_stack.wire.messages import (
    Abort,
    Attach,
    DrainNode,
    FromNode,
    LoadModel,
    Lost,
    StepReport,
    Submit,
    ToNode,
    UnloadModel,
)

log = logging.getLogger(__name__)

HOUSEKEEPING_SECONDS: Final = 0.25
GPU_SECONDS: Final = 5.0
"""How often GPUs are read."""
DRAIN_LOOK_SECONDS: Final = 0.02
FAREWELL_SECONDS: Final = 1.0
"""How long gateways may take to read a node's last words."""
SILENCE_FACTOR: Final = 2
"""A node waits this many times longer than a gateway before it gives a link up: the gateway decides, and dials again."""


class NodeAgent:
    """Serves any number of gateways with the workers it supervises; `first` is one that was spawned ahead.
    `on_state` hears of every change, as gateways do.

    Raises `InferenceError` when the machine has fewer cores than it shall have workers.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        clock: Clock,
        first: Spawned | None = None,
        on_state: Callable[[NodeState], None] = lambda state: None,
    ) -> None:
        self._on_state = on_state
        config = settled(config)
        node = config.node
        self._name = name
        self._clock = clock
        self._boot = secrets.token_hex(8)
        self._silence = config.gateway.silence_seconds * SILENCE_FACTOR
        found, gpu = devices.gpus(), on_gpu(config.engine.device)
        self._gpus = devices.gpu_ledger(found, used=gpu)
        self._gpu_stats: tuple[GpuStats, ...] = ()
        self._reader = GpuReader() if found else None
        sets = devices.core_sets(node.workers, node.threads, pinned=not node.simulated and not gpu)
        self._slots = tuple(
            Slot(self._supervisor(config, number, cores, None if number else first))
            for number, cores in enumerate(sets)
        )
        self._placement = Placement(self._slots, config.engine.max_batch_tokens)
        self._exchange = Exchange(self._placement, Orphans(node.orphan_seconds), clock)
        self._models = ModelChanges(config, self._slots, self._evacuate)
        self._tasks: set[asyncio.Task[None]] = set()
        self._drainage: asyncio.Task[None] | None = None
        self._leaving = False

    def _supervisor(self, config: Config, number: int, cores: devices.CoreSet, first: Spawned | None) -> Supervisor:
        report, changed = partial(self._report, number), partial(self._changed, number)
        config = replace(config, engine=replace(config.engine, device=nth_device(config.engine.device, number)))
        return Supervisor(config, self._clock, report, changed, first, cores)

    async def run(self) -> None:
        """Keep workers alive until `stop`, or until the task is cancelled; no link and no worker outlives it."""
        try:
            async with asyncio.TaskGroup() as tasks:
                keeper = tasks.create_task(self._keep_house())
                watcher = tasks.create_task(self._watch_gpus())
                await asyncio.gather(*(slot.supervisor.run() for slot in self._slots))
                keeper.cancel()
                watcher.cancel()
        finally:
            for task in self._tasks:
                task.cancel()
            for link in list(self._exchange.links):
                link.give_up("the node ends")

    async def serve_link(self, link: Link[FromNode, ToNode], peer: str = "", watched: bool = True) -> None:
        """Serve one gateway for as long as its link lives. `watched`: its silence means that it, or the way to it, is gone.

        `peer` is who is at the other end as far as the transport knows, for logs.
        """
        gateway = GatewayLink(link, self._clock, self._silence if watched else None, peer)
        try:
            await gateway.serve(partial(self._obey, gateway))
        finally:
            self._exchange.left(gateway)

    async def drain(self, seconds: float) -> None:
        """Take nothing new, for good; return when what gateways wait for has ended, or has been told to go elsewhere after
        `seconds`."""
        self._leaving = True
        await self._empty(seconds)

    async def _empty(self, seconds: float) -> None:
        self._refuse()
        until = self._clock.now() + seconds
        while self._exchange.owned and self._clock.now() < until:
            await self._clock.sleep(DRAIN_LOOK_SECONDS)
        self._exchange.evacuate_all("drained")

    async def stop(self, seconds: float) -> None:
        """Let running requests finish for up to `seconds`, then end the workers. What was to be told is told before."""
        await asyncio.gather(*(slot.supervisor.stop(seconds) for slot in self._slots))
        until = self._clock.now() + FAREWELL_SECONDS
        while not all(link.idle for link in self._exchange.links) and self._clock.now() < until:
            await self._clock.sleep(DRAIN_LOOK_SECONDS)

    def state(self) -> NodeState:
        """The node's condition now."""
        models = state.served(self._slots)
        return NodeState(
            node=self._name,
            ready=bool(models) or any(slot.usable for slot in self._slots),
            models=models,
            workers=tuple(slot.supervisor.describe() for slot in self._slots),
            ledgers=state.ledgers(self._slots, self._gpus),
            error=state.failure(self._slots),
            draining=self._exchange.refusing,
            boot=self._boot,
            gpus=self._gpu_stats,
        )

    # -- from gateways

    def _obey(self, gateway: GatewayLink, message: ToNode) -> None:
        match message:
            case Submit(requests=requests):
                self._exchange.submit(gateway, requests)
            case Abort(request_ids=request_ids):
                self._exchange.abort(gateway, request_ids)
            case Attach():
                self._attached(gateway)
            case DrainNode(seconds=seconds, undo=undo):
                log.info("%s: %s", gateway.describe(), "drain no more" if undo else f"drain within {seconds:g} s")
                self._drain_within(None if undo else seconds)
            case LoadModel(model=model, name=name):
                self._begin(self._models.load(model, name))
            case UnloadModel(name=name):
                self._begin(self._models.unload(name))

    def _attached(self, gateway: GatewayLink) -> None:
        """A gateway's process that attaches again has given its older link up, whatever that still looks like here."""
        for other in list(self._exchange.links):
            if other is not gateway and other.process == gateway.process:
                other.give_up("attached anew")
        self._exchange.links.add(gateway)
        gateway.tell(self.state())

    def _drain_within(self, seconds: float | None) -> None:
        """Begin to drain, anew if it is doing so already; None: serve again."""
        if self._drainage is not None:
            self._drainage.cancel()
            self._drainage = None
        if seconds is not None:
            self._refuse()  # now: the next message may be a request
            self._drainage = self._begin(self._empty(seconds))
        elif self._leaving:
            log.warning("this node is leaving: it takes nothing new any more")
        elif self._exchange.refusing:
            self._exchange.refusing = False
            self._tell_state()

    def _refuse(self) -> None:
        if not self._exchange.refusing:
            self._exchange.refusing = True
            self._tell_state()

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an order of an administrator failed", exc_info=error)

    # -- from workers

    def _report(self, number: int, message: StepReport | Lost) -> None:
        slot = self._slots[number]
        if isinstance(message, StepReport):
            self._exchange.step(slot, message)
        else:
            self._exchange.lost(slot, message)

    def _changed(self, number: int) -> None:
        """Gateways hear of a change before they hear of what it means for their requests."""
        slot = self._slots[number]
        if not slot.usable:
            self._placement.forget(slot)
        self._tell_state()
        self._exchange.release()

    def _evacuate(self, slot: Slot, reason: str) -> None:
        self._tell_state()
        self._exchange.evacuate(slot, reason)

    def _tell_state(self) -> None:
        told = self.state()
        self._on_state(told)
        for link in self._exchange.links:
            link.tell(told)

    async def _watch_gpus(self) -> None:
        """Tell what GPUs do, now and then; never where there are none."""
        while self._reader is not None:
            try:
                stats = await asyncio.to_thread(self._reader.read)
            except Exception:  # a driver's library may do anything, and a node serves on without these numbers
                log.exception("GPUs are no longer read")
                return
            if stats != self._gpu_stats:
                self._gpu_stats = stats
                self._tell_state()
            await self._clock.sleep(GPU_SECONDS)

    async def _keep_house(self) -> None:
        while True:
            await self._clock.sleep(HOUSEKEEPING_SECONDS)
            self._exchange.expire()
