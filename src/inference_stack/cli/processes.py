"""Several processes that do the same, and share what was opened before: forked, restarted when they die, ended together.

Knows nothing of what they do.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final, NoReturn

from inference_stack.core.errors import InferenceError

log = logging.getLogger(__name__)

SHORT_LIFE_SECONDS: Final = 10.0
FIRST_PAUSE_SECONDS: Final = 0.5
"""Before a process that died is started again; twice as long after each further short life."""
LONGEST_PAUSE_SECONDS: Final = 16.0
LOOK_SECONDS: Final = 0.1
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Children:
    """`work(number)` in `count` processes, numbered from 0. Call `run` before any thread or event loop exists.

    A child whose parent is gone, however that went, gets SIGTERM: it holds the other end of a pipe.
    """

    def __init__(self, count: int, work: Callable[[int], None]) -> None:
        self._count = count
        self._work = work
        self._numbers: dict[int, int] = {}
        self._started: dict[int, float] = {}
        self._pause = FIRST_PAUSE_SECONDS
        self._lifeline = (-1, -1)
        self._ending = False

    def run(self) -> None:
        """Until a signal ends them, or all of them ended well. A second signal is passed on too."""
        self._lifeline = os.pipe()
        for each in SIGNALS:
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
                self._rest(time.monotonic() - self._started[place])
                self._start(place)

    def _rest(self, lived: float) -> None:
        """Before the next start; longer and longer where processes keep dying early."""
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS) if lived < SHORT_LIFE_SECONDS else FIRST_PAUSE_SECONDS
        until = time.monotonic() + self._pause
        while not self._ending and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)

    def _start(self, number: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # one that comes now must find the new process in the table
        pid = 0 if self._ending else os.fork()
        if pid:
            self._numbers[pid] = number
            self._started[number] = time.monotonic()
        elif not self._ending:
            self._live(number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _live(self, number: int) -> NoReturn:
        """All that the new process does. In a group of its own: a terminal's ^C is the parent's to pass on, and comes once."""
        os.setpgrp()
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.close(self._lifeline[1])
        threading.Thread(target=self._watch_parent, daemon=True).start()
        status = 1
        try:
            self._work(number)
            status = 0
        except InferenceError as error:
            print(f"istack: {error}", file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(status)

    def _watch_parent(self) -> None:
        """Nothing is ever written: the pipe ends with whoever holds its other end."""
        os.read(self._lifeline[0], 1)
        os.kill(os.getpid(), signal.SIGTERM)

    def _pass_on(self, number: int, frame: object) -> None:
        self._ending = True
        for pid in list(self._numbers):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
