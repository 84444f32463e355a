"""Where steps are computed: in the loop's own thread, in one beside it, or by a device with a queue of its own.

    loop               plan 2 │      │ advance 1, report 1, plan 3 │      │ advance 2 …
    device   prepare 1, native code 1 │ prepare 2, native code 2 ─────────│ prepare 3 …

Beside it, planning and reporting cost the device nothing, since native code runs without the interpreter's lock. A result is
handed over only when the next step has reached its native code: until then the loop would compete for the lock. All models of a
device share one launcher, so its steps never overlap each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

from inference_stack.core.seams import InFlightStep
from inference_stack.core.step import StepResult

Finish = Callable[[], StepResult]
"""Waits for a step that was started, and gives its result."""
Work = Callable[[], Finish]
"""Starts a step."""


class Launcher(Protocol):
    """Executes steps in the order they come."""

    def submit(self, work: Work) -> InFlightStep:
        """Start a step, or have it started."""
        ...

    def native(self) -> None:
        """Called by a step that is about to run native code."""
        ...


class Retired:
    """A step that has already finished."""

    __slots__ = ("_result",)

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def wait(self) -> StepResult:
        """The result."""
        return self._result


class Inline:
    """Computes a step when it is submitted."""

    def submit(self, work: Work) -> Retired:
        """Run the step."""
        return Retired(work()())

    def native(self) -> None:
        """Nobody waits."""


class Started:
    """A step that a device is working on."""

    __slots__ = ("_finish",)

    def __init__(self, finish: Finish) -> None:
        self._finish = finish

    def wait(self) -> StepResult:
        """The result, once it is there."""
        return self._finish()


class Queued:
    """Starts a step on a device that has a queue of its own, and leaves it there."""

    def submit(self, work: Work) -> Started:
        """Queue the step's work on the device."""
        return Started(work())

    def native(self) -> None:
        """Nobody waits."""


class Pending:
    """A step that a thread computes."""

    __slots__ = ("_done", "_error", "_result", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self._done = threading.Lock()
        self._done.acquire()
        self._result: StepResult | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Compute the step; what it raises is kept for `wait`."""
        try:
            self._result = self.work()()
        except BaseException as error:
            self._error = error

    def hand_over(self) -> None:
        """Let `wait` return."""
        self._done.release()

    def wait(self) -> StepResult:
        """The result, once it is there. Raises what the step raised."""
        self._done.acquire()
        if self._result is None:
            raise self._error or RuntimeError("a step ended without a result")
        return self._result


class Beside:
    """Computes steps in one thread of its own, which lives as long as the process."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Pending] = SimpleQueue()
        self._finished: Pending | None = None
        threading.Thread(target=self._loop, name="device", daemon=True).start()

    def submit(self, work: Work) -> Pending:
        """Queue the step."""
        pending = Pending(work)
        self._queue.put(pending)
        return pending

    def native(self) -> None:
        """The lock is about to be free: hand over the result of the step before."""
        if self._finished is not None:
            self._finished.hand_over()
            self._finished = None

    def _loop(self) -> None:
        while True:
            if self._queue.empty():
                self.native()
            pending = self._queue.get()
            pending.run()
            self.native()
            self._finished = pending
