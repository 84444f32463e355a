"""Keeps one worker alive: starts it, passes messages, watches its pulse, replaces it when it dies or hangs.

starting ──Ready──▶ ready ──died / hung──▶ starting …          failed after too many starts that came to nothing
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from inference_stack.config.tree import Config, to_plain
from inference_stack.core.errors import SERVER_ERROR, ErrorInfo
from inference_stack.core.request import Request
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
    ModelInfo,
    Ready,
    StepReport,
    Submit,
    WorkerState,
)

log = logging.getLogger(__name__)

PULSE_CHECKS_PER_LIMIT = 10
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
        now = self.condition
        return WorkerState(pid=now.pid, device="cpu", state=now.state, restarts=now.restarts, reason=now.reason)

    async def run(self) -> None:
        """Keep a worker alive until `stop`, or until it has failed to start too often."""
        while not self._stopping:
            reason = await self._one_life()
            if self._stopping:
                return
            self._mourn(reason)
            if self.condition.state == "failed":
                return

    async def submit(self, request: Request) -> None:
        """Pass a request on. A worker that is gone reports it lost."""
        self._outstanding[request.id] = request.attempt
        await self._send(Submit(requests=(request,)))

    async def abort(self, request_ids: tuple[str, ...]) -> None:
        """Stop requests, wherever they are."""
        for request_id in request_ids:
            self._outstanding.pop(request_id, None)
        await self._send(Abort(request_ids=request_ids))

    async def stop(self, seconds: float) -> None:
        """Let running requests finish for up to `seconds`, then end the worker."""
        self._stopping = True
        if self._worker is None:
            return
        self._become("draining", "")
        await self._send(Drain())
        await self._worker.end(seconds)

    async def _send(self, message: Submit | Abort | Drain | Configure) -> None:
        if self._worker is not None:
            try:
                await self._worker.link.send(message)
            except LinkClosed:
                log.debug("worker is gone; its requests will be reported lost")

    async def _one_life(self) -> str:
        """From spawn to death of one worker process; why it ended."""
        self._worker = worker = await WorkerProcess.start(self._spawned)
        self._spawned = None
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
        while True:
            await asyncio.sleep(pause)
            if verdict := dog.verdict(self._clock.now()):
                return verdict

    def _handle(self, message: FromWorker, dog: Watchdog) -> None:
        match message:
            case Hello(wire_version=version) if version != WIRE_VERSION:
                raise ProtocolError(f"wire version {version}, not {WIRE_VERSION}")
            case Ready(models=models, ledger=ledger):
                dog.ready(self._clock.now())
                self.condition.models, self.condition.ledger, self.condition.failures = models, ledger, 0
                self._become("ready", "")
            case StepReport(deltas=deltas):
                for delta in deltas:
                    if delta.finish is not None and self._outstanding.get(delta.request_id) == delta.attempt:
                        del self._outstanding[delta.request_id]
                self._report(message)
            case Fatal(error=error):
                log.error("worker %d: %s", self.condition.pid, error.message)
                self.condition.error = error

    def _mourn(self, reason: str) -> None:
        """The worker is dead: account for it, and report what was on it."""
        now = self.condition
        log.warning("worker %d: %s; %d requests move", now.pid, reason, len(self._outstanding))
        now.restarts += 1
        now.failures += now.state == "starting"
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
