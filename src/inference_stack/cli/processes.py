"""Several processes that do the same, and share what was opened before: forked, restarted when they die, ended together.

Knows nothing of what they do.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

log = logging.getLogger(__name__)

RESTART_PAUSE_SECONDS = 0.5
"""Before a process that died is started again."""


class Children:
    """`work(number)` in `count` processes, numbered from 0. Call `run` before any thread or event loop exists."""

    def __init__(self, count: int, work: Callable[[int], None]) -> None:
        self._count = count
        self._work = work
        self._numbers: dict[int, int] = {}
        self._ending = False

    def run(self) -> None:
        """Until a signal ends them, or all of them ended well. A second signal is passed on too."""
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, self._pass_on)
        for number in range(self._count):
            self._start(number)
        while self._numbers:
            pid, status = os.wait()
            if pid not in self._numbers:
                continue  # a process that something else here has started
            place = self._numbers.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            if code and not self._ending:
                log.error("process %d ended with status %d; it is started again", pid, code)
                time.sleep(RESTART_PAUSE_SECONDS)
                self._start(place)

    def _start(self, number: int) -> None:
        if self._ending:
            return
        pid = os.fork()
        if pid:
            self._numbers[pid] = number
            return
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        status = 1
        try:
            self._work(number)
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(status)

    def _pass_on(self, number: int, frame: object) -> None:
        self._ending = True
        for pid in list(self._numbers):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
