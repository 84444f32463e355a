"""Who asked for what, which attempt counts, and who hears of it: between the links of gateways and the slots of workers.

    Submit ─▶ void?  adopt?  place ─▶ slot          higher attempts void lower ones, from whichever gateway they come
    owner  ◀─ record ◀─ deltas ◀──── slot           no owner: an orphan, recorded until adopted or its time is over

All of it is synchronous: nothing here waits for a gateway or a worker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from inference_stack.core.request import Request
from inference_stack.core.seams import Clock
from inference_stack.core.step import TokenDelta
from inference_stack.node.gateways import GatewayLink
from inference_stack.node.orphans import Orphans
from inference_stack.node.placement import Placement, Run, Slot
from inference_stack.node.runs import Retired
from inference_stack.wire.deadlines import arrived, departing
from inference_stack.wire.messages import Lost, StepReport, Submit

DRAINING: Final = "draining"
NO_WORKER: Final = "no worker is ready"

Batch = dict[Slot, list[Request]]


class Exchange:
    """`links` are those of attached gateways. While `refusing`, nothing new is taken."""

    def __init__(self, placement: Placement, orphans: Orphans, clock: Clock) -> None:
        self._placement = placement
        self._orphans = orphans
        self._clock = clock
        self._retired = Retired()
        self._runs: dict[str, Run] = {}
        self._told: set[str] = set()
        self.links: set[GatewayLink] = set()
        self.refusing = False

    @property
    def owned(self) -> int:
        """Requests that some gateway waits for."""
        return len(self._runs) - len(self._orphans) - len(self._told)

    @property
    def remembered(self) -> int:
        """Requests of which anything is known here: running ones, orphans, and what has left a short while ago."""
        return len(self._runs) + len(self._told) + len(self._retired)

    # -- from gateways

    def submit(self, link: GatewayLink, requests: Iterable[Request]) -> None:
        """Take requests. An attempt that is not higher than one that is or was here is void, and nothing is said of it."""
        batch: Batch = {}
        lost: dict[str, list[str]] = {}
        for request in requests:
            known = self._runs.get(request.id)
            highest = self._retired.attempt(request.id) if known is None else known.attempt
            if request.attempt > highest and (reason := self._take(link, request, known, batch)):
                self._retired.add(request.id, request.attempt, self._clock.now())
                lost.setdefault(reason, []).append(request.id)
        self._send(batch)
        for reason, ids in lost.items():
            link.tell(Lost(request_ids=tuple(ids), reason=reason, present=False))
        self.release()

    def _take(self, link: GatewayLink, request: Request, known: Run | None, batch: Batch) -> str:
        """Adopt, place or hold a request; or why none of that is possible."""
        if known is not None and not self.refusing and known.may_adopt(request):
            self._adopt(link, request, known)
            return ""
        if known is not None:
            self._end(known)
        if self.refusing:
            return DRAINING
        if not self._placement.serves(request.model):
            return NO_WORKER
        run = Run(request, request.attempt, link, link.process, self._clock.now())
        self._runs[run.id] = run
        if slot := self._placement.place(run):
            batch.setdefault(slot, []).append(request)
        return ""

    def _adopt(self, link: GatewayLink, request: Request, run: Run) -> None:
        """The older attempt's work becomes the newer one's; the engine goes on under the older number."""
        self._orphans.remove(run.id)
        run.owner, run.gateway, run.attempt = link, link.process, request.attempt
        replay = run.replay(request)
        if run.finish is not None:
            self._forget(run)
        link.tell(StepReport(deltas=(replay,), at=self._clock.wall()))

    def abort(self, link: GatewayLink, request_ids: Iterable[str]) -> None:
        """A process's own requests end, also those that it left behind on an earlier link."""
        for request_id in request_ids:
            run = self._runs.get(request_id)
            if run is not None and run.gateway == link.process:
                self._end(run)
        self.release()

    def left(self, link: GatewayLink) -> None:
        """A link is gone: what was asked for on it is orphaned."""
        self.links.discard(link)
        now = self._clock.now()
        for run in self._runs.values():
            if run.owner is link:
                run.owner = None
                self._told.discard(run.id)
                self._orphans.add(run, now)
        self.expire()

    def expire(self) -> None:
        """Orphans that were kept long enough end, and so do records of what has ended and arrived, or left long ago."""
        self._retired.expire(self._clock.now())
        for link in self.links:
            for request_id in link.heard_of():
                run = self._runs.get(request_id)
                if run is not None and run.owner is link and run.finish is not None:
                    self._forget(run)
        if len(self._orphans):
            for run in self._orphans.overdue(self._clock.now()):
                self._end(run)
            self.release()

    # -- from workers

    def step(self, slot: Slot, report: StepReport) -> None:
        """What a worker's step came to, for each owner its part. On the path of every token."""
        parts: dict[GatewayLink, list[TokenDelta]] = {link: [] for link in self.links}
        runs, ended = slot.runs, False
        for delta in report.deltas:
            run = runs.get(delta.request_id)
            if run is None or run.request.attempt != delta.attempt:
                continue
            if not run.began and delta.tokens:
                ended |= slot.trial is run
                slot.began(run)
            run.record(delta)
            if run.owner is not None:
                parts[run.owner].append(delta if run.attempt == delta.attempt else replace(delta, attempt=run.attempt))
            if delta.finish is not None:
                ended = True
                self._finished(run)
        stats = self._placement.observe(slot, report.stats)
        if stats is not report.stats:
            report = StepReport(deltas=report.deltas, stats=stats, at=report.at)
        for link, deltas in parts.items():
            link.tell_step(deltas, report)
        if ended:
            self.release()

    def _finished(self, run: Run) -> None:
        """It is over. Its record stays for whoever may adopt it, until its gateway is known to have all of it: that may be dead
        by now, or not listen any more."""
        self._placement.remove(run)
        if run.owner is None:
            return
        if run.owner.watched:
            self._told.add(run.id)
            run.owner.last_words(run.id)
        else:
            self._forget(run)

    def lost(self, slot: Slot, message: Lost) -> None:
        """A worker's requests are lost with it."""
        runs = [slot.runs[request_id] for request_id in message.request_ids if request_id in slot.runs]
        self._lose(runs, message.reason, message.present)
        self.release()

    def evacuate(self, slot: Slot, reason: str) -> None:
        """Everything on a healthy worker goes elsewhere."""
        self._lose(list(slot.runs.values()), reason, present=False)
        self.release()

    def evacuate_all(self, reason: str) -> None:
        """Everything that a gateway waits for goes elsewhere."""
        self._lose(
            [run for run in self._runs.values() if run.owner is not None and run.finish is None], reason, present=False
        )

    def release(self) -> None:
        """Let requests that were held back go on, where that is possible now."""
        if not self._placement.holds:
            return
        batch: Batch = {}
        stranded: list[Run] = []
        now = self._clock.now()
        for run, slot in self._placement.released():
            if slot is None:
                stranded.append(run)
            else:
                batch.setdefault(slot, []).append(departing(arrived(run.request, run.taken), now))
        self._send(batch)
        self._lose(stranded, NO_WORKER, present=False)

    # -- inside

    def _send(self, batch: Batch) -> None:
        for slot, requests in batch.items():
            slot.supervisor.submit(Submit(requests=tuple(requests)))

    def _lose(self, runs: list[Run], reason: str, present: bool) -> None:
        """Tell the owners, each of all its own at once. Orphans just end."""
        told: dict[GatewayLink, list[str]] = {}
        for run in runs:
            if run.owner is not None:
                told.setdefault(run.owner, []).append(run.id)
            self._end(run)
        for link, ids in told.items():
            link.tell(Lost(request_ids=tuple(ids), reason=reason, present=present))

    def _end(self, run: Run) -> None:
        """Stop a request wherever it is; nothing more is told of it."""
        slot = run.place
        self._placement.remove(run)
        self._forget(run)
        if slot is not None:
            slot.supervisor.abort((run.id,))

    def _forget(self, run: Run) -> None:
        self._orphans.remove(run.id)
        self._told.discard(run.id)
        self._runs.pop(run.id, None)
        self._retired.add(run.id, run.attempt, self._clock.now())
