"""Keeps one worker alive: starts it, passes messages, watches its pulse, replaces it when it dies or hangs.

starting ──Ready──▶ ready ──died / hung──▶ starting …          failed after too many starts that came to nothing
                      └──other models──▶ draining ─▶ starting …
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from inference_stack.config.tree import Config, ModelEntry, to_plain
from inference_stack.core.errors import SERVER_ERROR, ErrorInfo, unavailable
from inference_stack.core.fleet import ModelInfo, WorkerState
from inference_stack.core.seams import Clock, LinkClosed
from inference_stack.core.stats import Ledger
from inference_stack.node.devices import CoreSet
from inference_stack.node.process import WorkerProcess
from inference_stack.node.spawn import Spawned
from inference_stack.node.watchdog import Limits, Watchdog
from inference_stack.wire.codec import ProtocolError
from inference_stack.wire.messages import (
    WIRE_VERSION,
    Abort,
    Configure,
    Drain,
    Fatal,
    FromWorker,
    Hello,
    Lost,
    Ready,
    StepReport,
    Submit,
    ToWorker,
)

log = logging.getLogger(__name__)

PULSE_CHECKS_PER_LIMIT = 10
FIRST_PAUSE_SECONDS = 0.25
"""Before another start after the first one that came to nothing; twice as long after each further one."""
FAREWELL_SECONDS = 2.0
"""How long a worker that closed its link may take to exit by itself."""


@dataclass(slots=True)
class Condition:
    """What a supervisor knows of its worker."""

    state: str = "starting"
    restarts: int = 0
    failures: int = 0
    reason: str = ""
    pid: int = 0
    models: tuple[ModelInfo, ...] = ()
    ledger: Ledger = field(default_factory=Ledger)
    error: ErrorInfo | None = None


class Supervisor:
    """Owns one worker slot of a node. `report` receives `StepReport` and `Lost`; `changed` is called at every state change.

    `first` is a worker that was spawned ahead, `cores` what workers may use. What is passed on waits in a queue, so that nobody
    is held up by a worker that does not read; the watchdog ends such a worker, and its queue with it.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        report: Callable[[StepReport | Lost], None],
        changed: Callable[[], None],
        first: Spawned | None = None,
        cores: CoreSet | None = None,
    ) -> None:
        self._cores = cores or CoreSet(threads=config.node.threads)
        self._asked = replace(config, node=replace(config.node, threads=self._cores.threads))
        self._config = self._asked
        self._clock = clock
        self._report = report
        self._changed = changed
        self._outstanding: dict[str, int] = {}
        self._outbox: asyncio.Queue[ToWorker] = asyncio.Queue()
        self._spawned = first
        self._worker: WorkerProcess | None = None
        self._stopping = self._replacing = False
        self._wake = asyncio.Event()
        self._outcome: asyncio.Future[ErrorInfo | None] | None = None
        self.condition = Condition()

    @property
    def ready(self) -> bool:
        """Whether requests may be passed on."""
        return self.condition.state == "ready"

    @property
    def device(self) -> str:
        """What the worker computes with."""
        return ", ".join(filter(None, (self._config.device_title, self._cores.title)))

    def describe(self) -> WorkerState:
        """The worker as others see it."""
        now = self.condition
        return WorkerState(pid=now.pid, device=self.device, state=now.state, restarts=now.restarts, reason=now.reason)

    async def run(self) -> None:
        """Keep a worker alive until `stop`. After it failed to start too often there is none until `serve` names other models."""
        while not self._stopping:
            reason = await self._one_life()
            if self._stopping:
                return
            if self._replacing:
                self._replacing, self.condition.failures = False, 0
                continue
            self._mourn(reason)
            await self._pause()

    async def _pause(self) -> None:
        """Between two lives: none at first, longer with every start that came to nothing."""
        failures = self.condition.failures
        if self.condition.state == "failed":
            self._wake.clear()
            await self._wake.wait()
        else:
            await self._clock.sleep(FIRST_PAUSE_SECONDS * 2**failures if failures else 0)

    def submit(self, message: Submit) -> None:
        """Pass requests on. They are reported lost when there is no worker, or when it goes before they have ended."""
        attempts = {request.id: request.attempt for request in message.requests}
        if not self.ready:
            self._report(Lost(request_ids=tuple(attempts), reason="no worker is ready", present=False))
            return
        self._outstanding |= attempts
        self._outbox.put_nowait(message)

    def abort(self, request_ids: tuple[str, ...]) -> None:
        """Stop requests; nothing more is reported about them."""
        for request_id in request_ids:
            self._outstanding.pop(request_id, None)
        self._outbox.put_nowait(Abort(request_ids=request_ids))

    def note(self, reason: str) -> None:
        """Tell of something that concerns this worker and does not change its state."""
        self._become(self.condition.state, reason)

    async def serve(self, models: tuple[ModelEntry, ...]) -> ErrorInfo | None:
        """Replace the worker by one with these models. None as soon as that is ready, otherwise why it cannot be.

        What runs here is forgotten, and nothing is reported of it: the caller has told its owners.
        """
        self._asked = replace(self._asked, models=models)
        self._config, self._outstanding = self._asked, {}
        self._outcome = asyncio.get_running_loop().create_future()
        now, worker = self.condition, self._worker
        now.models, now.error, now.failures = (), None, 0
        self._become("draining" if worker else "starting", "its models change")
        self._replacing = worker is not None
        self._wake.set()
        if worker is not None:
            await worker.end(0)
        return await self._outcome

    async def stop(self, seconds: float) -> None:
        """Let running requests finish for up to `seconds`, then end the worker."""
        self._stopping = True
        self._wake.set()
        self._settle(unavailable("The node is stopping.").info)
        worker = self._worker
        if worker is not None:
            self._become("draining", "")
            self._outbox.put_nowait(Drain())
            await worker.end(seconds)

    async def _speak(self, worker: WorkerProcess, outbox: asyncio.Queue[ToWorker]) -> None:
        try:
            while True:
                await worker.link.send(await outbox.get())
        except LinkClosed:
            log.debug("worker is gone; its requests will be reported lost")

    async def _one_life(self) -> str:
        """From spawn to death of one worker process; why it ended."""
        try:
            self._worker = worker = await WorkerProcess.start(
                self._spawned, self._config.node.engine, self._cores.cores
            )
        except OSError as error:
            self.condition.failures += 1
            return f"cannot start a worker: {error}"
        self._spawned = None
        if self._stopping:
            return f"stopped (exit status {await worker.end(0)})"
        self.condition.pid = worker.pid
        self._become("starting", self.condition.reason)
        self._outbox = asyncio.Queue()
        self._outbox.put_nowait(Configure(config=to_plain(self._config)))
        reason, gone = await self._attend(worker)
        self._worker = None
        self.condition.failures += not self.ready
        self._become("starting", "the worker ended")
        status = await worker.end(FAREWELL_SECONDS if gone else 0)
        return f"{reason} (exit status {status})"

    async def _attend(self, worker: WorkerProcess) -> tuple[str, bool]:
        """Talk, listen and watch until the worker is gone (True) or must go; why."""
        limits = self._config.node
        dog = Watchdog(
            Limits(heartbeat=limits.heartbeat_seconds, step=limits.step_seconds, start=limits.start_seconds),
            self._clock.now(),
        )
        speaking = asyncio.create_task(self._speak(worker, self._outbox))
        listening = asyncio.create_task(self._listen(worker, dog))
        watching = asyncio.create_task(self._watch(dog))
        done, _ = await asyncio.wait((listening, watching), return_when=asyncio.FIRST_COMPLETED)
        for task in (speaking, listening, watching):
            task.cancel()
        await asyncio.gather(speaking, listening, watching, return_exceptions=True)
        return next(iter(done)).result(), listening in done

    async def _listen(self, worker: WorkerProcess, dog: Watchdog) -> str:
        """Handle what the worker says until its link closes; why it ended."""
        try:
            while True:
                message = await worker.link.receive()
                dog.hear(message, self._clock.now())
                self._handle(message, dog)
        except LinkClosed:
            return "worker process ended"
        except ProtocolError as error:
            return f"worker spoke nonsense: {error}"

    async def _watch(self, dog: Watchdog) -> str:
        """Look at the pulse until it is bad; why."""
        pause = self._config.node.heartbeat_seconds / PULSE_CHECKS_PER_LIMIT
        last = self._clock.now()
        while True:
            await self._clock.sleep(pause)
            now, overslept = self._clock.now(), self._clock.now() - last > 2 * pause
            last = now
            if overslept:
                dog.excuse(now)  # it is we who were paused: what the worker said meanwhile is still unread
            elif verdict := dog.verdict(now):
                return verdict

    def _handle(self, message: FromWorker, dog: Watchdog) -> None:
        match message:
            case Hello(wire_version=version) if version != WIRE_VERSION:
                raise ProtocolError(f"wire version {version}, not {WIRE_VERSION}")
            case Ready():
                dog.ready(self._clock.now())
                self._now_ready(message)
            case StepReport(deltas=deltas):
                for delta in deltas:
                    if delta.finish is not None and self._outstanding.get(delta.request_id) == delta.attempt:
                        del self._outstanding[delta.request_id]
                self._report(message)
            case Fatal(error=error):
                log.error("worker %d: %s", self.condition.pid, error.message)
                self.condition.error = error

    def _now_ready(self, message: Ready) -> None:
        """The worker serves. Its successors get exactly its memory: a sequence that fits now must fit after a restart."""
        now = self.condition
        now.models, now.ledger, now.failures, now.error = message.models, message.ledger, 0, None
        engine = replace(self._config.engine, kv_memory=str(message.kv_memory))
        self._config = replace(self._config, engine=engine)
        self._become("ready", "")
        self._settle(None)

    def _settle(self, outcome: ErrorInfo | None) -> None:
        """Answer whoever waits for other models."""
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(outcome)

    def _mourn(self, reason: str) -> None:
        """The worker is dead: account for it, and report what was on it."""
        now = self.condition
        log.warning("worker %d: %s; %d requests move", now.pid, reason, len(self._outstanding))
        now.restarts += 1
        never_worked = not now.models and now.error is not None
        gave_up = never_worked or now.failures >= self._config.node.max_start_failures
        self._become("failed" if gave_up else "starting", reason)
        if gave_up and now.error is None:
            now.error = ErrorInfo(message=f"worker: {reason}", type=SERVER_ERROR, code="worker_failed", status=503)
        lost, self._outstanding = tuple(self._outstanding), {}
        if lost:
            self._report(Lost(request_ids=lost, reason=reason, present=True))
        if gave_up:
            self._settle(now.error)

    def _become(self, state: str, reason: str) -> None:
        self.condition.state = state
        self.condition.reason = reason
        self._changed()
