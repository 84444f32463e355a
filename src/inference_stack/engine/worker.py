"""The worker process: one device, its models, and the loop that steps them.

    reader thread ─▶ inbox ─▶ loop: take messages, step the core, send one report ─▶ socket ◀─ heartbeat thread

It lives as long as its node: when the socket closes, it exits. Whatever it cannot handle ends it with a non-zero status, and
the node starts another.
"""

from __future__ import annotations

import argparse
import gc
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from inference_stack.core.errors import SERVER_ERROR, ErrorInfo, InferenceError
from inference_stack.core.seams import Clock, LinkClosed, SystemClock
from inference_stack.telemetry.startup import Account, process_start
from inference_stack.wire.channel import Channel
from inference_stack.wire.deadlines import arrived
from inference_stack.wire.messages import (
    WIRE_VERSION,
    Abort,
    Configure,
    Drain,
    Fatal,
    Heartbeat,
    Hello,
    Ready,
    StepReport,
    Submit,
    ToWorker,
)

if TYPE_CHECKING:
    from inference_stack.config.tree import Config
    from inference_stack.engine.core import EngineCore

HEARTBEAT_SECONDS = 0.25
"""Between two signs of life; well below the shortest silence that a node may take for death."""

CHECK_AFTER_SECONDS = 0.25
"""Of idleness, until the bookkeeping is checked."""

COLLECTOR_THRESHOLDS = (50_000, 20, 100)
"""Net new containers between collections of the youngest generation, and how many of those until the older ones' turn."""


SWITCH_SECONDS = 0.0005
"""How long a thread may keep the interpreter's lock from another: well below a step, which the loop and the device share."""


class Worker:
    """The loop around an `EngineCore`."""

    def __init__(
        self, core: EngineCore, channel: Channel, inbox: queue.SimpleQueue[ToWorker], clock: Clock, check: bool
    ) -> None:
        self._core = core
        self._channel = channel
        self._inbox = inbox
        self._check = check
        self._clock = clock
        self._draining = False
        self._unchecked = False
        self.busy = False

    @property
    def steps(self) -> int:
        """Steps retired so far."""
        return self._core.steps

    def run(self) -> None:
        """Serve until drained. Raises `LinkClosed` when the node is gone, and whatever the engine raises."""
        while not (self._draining and not self._core.has_work):
            self._take_messages()
            if self._core.has_work:
                self.busy = True
                deltas = self._core.step()
                self._channel.send(StepReport(deltas=deltas, stats=self._core.stats(), at=self._clock.wall()))

    def _take_messages(self) -> None:
        """Handle what has arrived; when there is nothing to compute, wait for the next message."""
        if not self._core.has_work and self._inbox.empty():
            self._fall_idle()
            self._handle(self._next_when_idle())
        while not self._inbox.empty():
            self._handle(self._inbox.get())

    def _fall_idle(self) -> None:
        if self.busy:
            self._channel.send(StepReport(deltas=(), stats=self._core.stats()))
            self._unchecked = self._check
        self.busy = False

    def _next_when_idle(self) -> ToWorker:
        """Wait for a message. The bookkeeping is checked once nothing has come for a while: a check looks at every block, and the
        next request shall not wait for it."""
        if self._unchecked:
            try:
                return self._inbox.get(timeout=CHECK_AFTER_SECONDS)
            except queue.Empty:
                self._core.check()
                self._unchecked = False
        return self._inbox.get()

    def _handle(self, message: ToWorker) -> None:
        match message:
            case Submit(requests=requests):
                now = self._clock.now()
                for request in requests:
                    self._core.add(arrived(request, now))
            case Abort(request_ids=request_ids):
                for request_id in request_ids:
                    self._core.abort(request_id)
            case Drain():
                self._draining = True
            case Configure():
                raise ValueError("a worker is configured once")


def tune_collector() -> None:
    """Keep Python's garbage collector out of the steps. Called once the models are loaded.

    What exists now lives as long as the process and is never looked at again. The loop makes hardly any reference cycles, so
    young objects are looked at rarely.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def _read(channel: Channel, inbox: queue.SimpleQueue[ToWorker]) -> None:
    """Reader thread. Without a node there is nothing to live for, even in the middle of a step; a deaf worker must not live."""
    try:
        while True:
            inbox.put(channel.receive())
    except LinkClosed:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _beat(channel: Channel, worker: list[Worker]) -> None:
    """Heartbeat thread. `worker` is empty until the models are loaded."""
    never = threading.Event()
    try:
        while not never.wait(HEARTBEAT_SECONDS):
            beat = Heartbeat(steps=worker[0].steps, busy=worker[0].busy) if worker else Heartbeat(steps=0, busy=False)
            channel.send(beat)
    except LinkClosed:
        return


class Starting(Protocol):
    """What builds an engine."""

    def run(self) -> tuple[EngineCore, Ready]:
        """Load everything. Raises `InferenceError` for what cannot be served."""
        ...


def starting(engine: str) -> Callable[[Config, Clock, Account], Starting]:
    """What builds this kind of engine, with the libraries it needs: torch for all but simulated ones, which takes a while."""
    if engine == "simulated":
        from inference_stack.engine.simulated_startup import SimulatedStartup

        return SimulatedStartup
    from inference_stack.engine.startup import Startup

    return Startup


def serve(channel: Channel, clock: Clock, account: Account, engine: str) -> None:
    """A worker's life: hello, libraries, configuration, models, then the loop."""
    channel.send(Hello(wire_version=WIRE_VERSION, pid=os.getpid()))
    worker: list[Worker] = []
    threading.Thread(target=_beat, args=(channel, worker), daemon=True).start()
    from inference_stack.config.tree import from_plain

    startup = starting(engine)
    account.began("worker: python and imports")
    with account.stage("worker: waits for its configuration"):
        first = channel.receive()
    if not isinstance(first, Configure):
        raise ValueError(f"expected Configure, got {type(first).__name__}")
    inbox: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(channel, inbox), daemon=True).start()
    config = from_plain(first.config)
    core, ready = startup(config, clock, account).run()
    worker.append(Worker(core, channel, inbox, clock, config.engine.check_integrity))
    tune_collector()
    sys.setswitchinterval(SWITCH_SECONDS)
    channel.send(ready)
    try:
        worker[0].run()
    finally:
        core.close()


def main() -> int:
    """Entry of the worker process: `--fd` is an inherited, connected unix socket."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--engine", default="native")
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # sent to a whole process group they are for the node, which drains us
        signal.signal(number, signal.SIG_IGN)
    clock, arguments = SystemClock(), parser.parse_args()
    channel = Channel(socket.socket(fileno=arguments.fd))
    try:
        serve(channel, clock, Account(clock, process_start(clock, os.getpid())), arguments.engine)
    except LinkClosed:
        return 0
    except InferenceError as error:
        channel.send(Fatal(error=error.info))
        return 1
    except Exception as error:
        traceback.print_exc()
        info = ErrorInfo(
            message=f"{type(error).__name__}: {error}", type=SERVER_ERROR, code="worker_failed", status=500
        )
        channel.send(Fatal(error=info))
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # msgspec's types may crash while the interpreter tears them down
