"""Keeps a link to every node that is known: dials, serves, dials again; forgets nodes that are no longer named.

Knows neither how addresses are found nor what a link is made of.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from functools import partial

from inference_stack.core.errors import InferenceError
from inference_stack.core.seams import Clock, Link, LinkClosed
from inference_stack.gateway.fleet import Fleet
from inference_stack.wire.messages import FromNode, ToNode

log = logging.getLogger(__name__)

Dial = Callable[[str], Awaitable[Link[ToNode, FromNode]]]

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 3.0
"""Between attempts to reach a node; short, because streams may be waiting for it."""


class Connector:
    """One task per node. `dial` raises `LinkClosed` or `InferenceError` when a node cannot be reached."""

    def __init__(self, fleet: Fleet, dial: Dial, clock: Clock) -> None:
        self._fleet = fleet
        self._dial = dial
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def nodes(self, addresses: frozenset[str]) -> None:
        """These are the nodes from now on. Links to others end; their streams go on elsewhere."""
        for gone in self._tasks.keys() - addresses:
            log.info("node %s is no longer named", gone)
            task = self._tasks.pop(gone)
            task.add_done_callback(partial(self._left, gone))
            task.cancel()
        for address in addresses - self._tasks.keys():
            self._tasks[address] = asyncio.create_task(self._keep(address), name=f"node {address}")

    def _left(self, address: str, task: asyncio.Task[None]) -> None:
        """Its link has ended. It may be named again by now."""
        if address not in self._tasks:
            self._fleet.forget(address)

    async def close(self) -> None:
        """End every link."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, address: str) -> None:
        pause, trouble = FIRST_PAUSE_SECONDS, ""
        while True:
            try:
                link = await self._dial(address)
                pause, trouble = FIRST_PAUSE_SECONDS, ""
                log.info("node %s: linked", address)
                reason = await self._fleet.serve_link(address, link)
                log.warning("node %s: %s", address, reason)
            except (LinkClosed, InferenceError, OSError) as error:
                if str(error) != trouble:
                    log.warning("node %s cannot be reached: %s", address, error)
                trouble = str(error)
            except Exception as error:  # a node must not be given up because of one message, nor must it go unnoticed
                log.exception("node %s: its link failed at this end: %s", address, error)
            await self._clock.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
