"""Keeps one worker alive: starts it, passes messages, watches its pulse, replaces it when it dies or hangs.

starting ──Ready──▶ ready ──died / hung──▶ starting …          failed after too many starts that came to nothing
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from inference_stack.config.tree import Config, to_plain
from inference_stack.core.errors import SERVER_ERROR, ErrorInfo
from inference_stack.core.fleet import ModelInfo, WorkerState
from inference_stack.core.seams import Clock, LinkClosed
from inference_stack.core.stats import Ledger
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

    `first` is a worker that was spawned ahead.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        report: Callable[[StepReport | Lost], None],
        changed: Callable[[], None],
        first: Spawned | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._report = report
        self._changed = changed
        self._outstanding: dict[str, int] = {}
        self._spawned = first
        self._worker: WorkerProcess | None = None
        self._stopping = False
        self.condition = Condition()

    @property
    def ready(self) -> bool:
        """Whether requests may be passed on."""
        return self.condition.state == "ready"

    def describe(self) -> WorkerState:
        """The worker as others see it."""
        now, device = self.condition, self._config.node.device
        return WorkerState(pid=now.pid, device=device, state=now.state, restarts=now.restarts, reason=now.reason)

    async def run(self) -> None:
        """Keep a worker alive until `stop`, or until it has failed to start too often."""
        while not self._stopping:
            reason = await self._one_life()
            if self._stopping:
                return
            self._mourn(reason)
            if self.condition.state == "failed":
                return
            await self._clock.sleep(FIRST_PAUSE_SECONDS * 2**self.condition.failures if self.condition.failures else 0)

    async def submit(self, message: Submit) -> None:
        """Pass requests on. They are reported lost when there is no worker, or when it goes before they have ended."""
        attempts = {request.id: request.attempt for request in message.requests}
        if not self.ready:
            self._report(Lost(request_ids=tuple(attempts), reason="no worker is ready", present=False))
            return
        self._outstanding |= attempts
        await self._send(message)

    async def abort(self, request_ids: tuple[str, ...]) -> None:
        """Stop requests, wherever they are."""
        for request_id in request_ids:
            self._outstanding.pop(request_id, None)
        await self._send(Abort(request_ids=request_ids))

    async def stop(self, seconds: float) -> None:
        """Let running requests finish for up to `seconds`, then end the worker."""
        self._stopping = True
        worker = self._worker
        if worker is not None:
            self._become("draining", "")
            await self._send(Drain())
            await worker.end(seconds)

    async def _send(self, message: Submit | Abort | Drain | Configure) -> None:
        if self._worker is not None:
            try:
                await self._worker.link.send(message)
            except LinkClosed:
                log.debug("worker is gone; its requests will be reported lost")

    async def _one_life(self) -> str:
        """From spawn to death of one worker process; why it ended."""
        try:
            self._worker = worker = await WorkerProcess.start(self._spawned, self._config.node.engine)
        except OSError as error:
            self.condition.failures += 1
            return f"cannot start a worker: {error}"
        self._spawned = None
        if self._stopping:
            return f"stopped (exit status {await worker.end(0)})"
        self.condition.pid = worker.pid
        self._become("starting", self.condition.reason)
        limits = self._config.node
        dog = Watchdog(
            Limits(heartbeat=limits.heartbeat_seconds, step=limits.step_seconds, start=limits.start_seconds),
            self._clock.now(),
        )
        await self._send(Configure(config=to_plain(self._config)))
        listening = asyncio.create_task(self._listen(worker, dog))
        watching = asyncio.create_task(self._watch(dog))
        done, _ = await asyncio.wait((listening, watching), return_when=asyncio.FIRST_COMPLETED)
        for task in (listening, watching):
            task.cancel()
        await asyncio.gather(listening, watching, return_exceptions=True)
        self._worker = None
        self.condition.failures += not self.ready
        self._become("starting", "the worker ended")
        status = await worker.end(FAREWELL_SECONDS if listening in done else 0)
        return f"{next(iter(done)).result()} (exit status {status})"

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

    def _become(self, state: str, reason: str) -> None:
        self.condition.state = state
        self.condition.reason = reason
        self._changed()
