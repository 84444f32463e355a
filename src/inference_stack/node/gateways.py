"""One gateway's link as the node holds it: who it is, what waits to be told, whether it still lives.

What is told waits in a bounded queue and joins while the link is slow. A link that stays slow, or falls silent, is closed, and
never delays another.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from inference_stack.core.seams import Clock, Link, LinkClosed
from inference_stack.core.step import TokenDelta
from inference_stack.wire.coalesce import coalesce
from inference_stack.wire.codec import ProtocolError
from inference_stack.wire.messages import WIRE_VERSION, Attach, Beat, FromNode, StepReport, ToNode
from inference_stack.wire.pace import JOIN_SECONDS, NEAR_JOIN_SECONDS, Pace
from inference_stack.wire.pulse import Pulse

log = logging.getLogger(__name__)

BEAT_SECONDS: Final = 0.25
MOST_WAITING: Final = 1 << 16
"""Deltas (and other messages) that may wait for a slow link, before it is closed."""
MOST_JOINED: Final = 4096
"""Deltas of one message."""
FOREVER: Final = float("inf")
STATS_SECONDS: Final = 0.1
"""How often a gateway hears the numbers of steps in which nothing of its own was computed."""


def _weight(message: FromNode) -> int:
    return max(1, len(message.deltas)) if isinstance(message, StepReport) else 1


class GatewayLink:
    """`limit` is how many seconds of silence end it; None: it cannot fall silent, being in this process."""

    def __init__(self, link: Link[FromNode, ToNode], clock: Clock, limit: float | None, peer: str = "") -> None:
        self._link = link
        self._clock = clock
        self._peer = peer
        self.watched = limit is not None
        self._last_words: deque[tuple[int, str]] = deque()
        self._pulse = Pulse(limit or FOREVER, clock.now())
        self._pace = Pace(JOIN_SECONDS if self.watched else NEAR_JOIN_SECONDS)
        self._waiting: deque[FromNode] = deque()
        self._weight = 0
        self._sending = False
        self._news = asyncio.Event()
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._stats_at = 0.0
        self.process = ("", "")
        self.attached = False

    @property
    def idle(self) -> bool:
        """Whether everything has been handed to the link, or never will be."""
        return self._over.done() or not (self._waiting or self._sending)

    def describe(self) -> str:
        """Who it is, for logs."""
        return f"gateway {self.process[0] or self._peer or 'unknown'}"

    def attach(self, message: Attach) -> None:
        """It says who it is. Raises `ProtocolError` when it speaks no version next to ours."""
        if abs(message.wire_version - WIRE_VERSION) > 1:
            raise ProtocolError(f"wire version {message.wire_version}, not {WIRE_VERSION}")
        self.process, self.attached = (message.gateway, message.boot), True

    def tell(self, message: FromNode) -> None:
        """Send, in order, when the link takes it."""
        if self._over.done():
            return
        self._waiting.append(message)
        self._weight += _weight(message)
        self._news.set()
        if self._weight > MOST_WAITING:
            self.give_up("does not keep up")

    def tell_step(self, deltas: list[TokenDelta], report: StepReport) -> None:
        """Its part of a step: its deltas, and everybody's numbers, which travel alone only now and then, and at the end."""
        now = self._clock.now()
        if deltas or not report.deltas or now - self._stats_at > STATS_SECONDS:
            self._stats_at = now
            self.tell(StepReport(deltas=tuple(deltas), stats=report.stats, at=report.at))

    def last_words(self, request_id: str) -> None:
        """What is told now is the last of this request."""
        self._last_words.append((self._pulse.sent + 1, request_id))

    def heard_of(self) -> list[str]:
        """The requests whose last words are known to have arrived, each once."""
        heard: list[str] = []
        while self._last_words and self._last_words[0][0] <= self._pulse.confirmed:
            heard.append(self._last_words.popleft()[1])
        return heard

    def give_up(self, reason: str) -> None:
        """End the link soon. Idempotent."""
        if not self._over.done():
            self._over.set_result(reason)

    async def serve(self, obey: Callable[[ToNode], None]) -> None:
        """Listen, speak and beat until the link is over, however that comes; then close it."""
        parts = [self._listen(obey), self._speak(), self._given_up()] + ([self._beat()] if self.watched else [])
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            log.info("%s: %s", self.describe(), next(iter(done)).result())
        except ProtocolError as error:
            log.warning("%s spoke nonsense: %s", self.describe(), error)
        finally:
            self.give_up("the link is over")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._link.close()

    async def _given_up(self) -> str:
        return await asyncio.shield(self._over)

    async def _listen(self, obey: Callable[[ToNode], None]) -> str:
        try:
            while True:
                message = await self._link.receive()
                self._pulse.hear(message, self._clock.now())
                if isinstance(message, Attach):
                    self.attach(message)
                elif not self.attached:
                    raise ProtocolError(f"{type(message).__name__} before Attach")
                if not isinstance(message, Beat):
                    obey(message)
        except LinkClosed:
            return "link closed"

    async def _speak(self) -> str:
        try:
            while True:
                while self._waiting:
                    self._sending = True
                    if isinstance(self._waiting[0], StepReport) and (pause := self._pace.wait(self._clock.now())):
                        await self._clock.sleep(pause)
                    await self._link.send(self._next())
                self._sending = False
                self._news.clear()
                await self._news.wait()
        except LinkClosed:
            return "link closed"

    def _next(self) -> FromNode:
        """What to send now: reports that had to wait go together."""
        message = self._pop()
        if not isinstance(message, StepReport):
            return message
        reports, size = [message], len(message.deltas)
        while self._waiting and isinstance(following := self._waiting[0], StepReport):
            size += len(following.deltas)
            if size > MOST_JOINED:
                break
            reports.append(following)
            self._pop()
        self._pace.sent(sum(len(report.deltas) for report in reports), self._clock.now())
        return coalesce(reports)

    def _pop(self) -> FromNode:
        message = self._waiting.popleft()
        self._weight -= _weight(message)
        return message

    async def _beat(self) -> str:
        """Say that we live, and look whether they do."""
        while True:
            await self._clock.sleep(BEAT_SECONDS)
            now = self._clock.now()
            if verdict := self._pulse.verdict(now):
                return verdict
            if self.attached:
                self.tell(self._pulse.beat(now))
