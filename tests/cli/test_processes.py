"""Processes that do the same: started again when they die, ended together, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

PATIENCE = 20.0
PROGRAM = """
import os, signal, sys, time
from inference_stack.cli.processes import Children

def work(number):
    os.write(1, b"%d %d\\n" % (number, os.getpid()))
    {work}

Children({count}, work).run()
print("over", flush=True)
"""


class Parent:
    """A program that runs `Children`; each child says its number and its pid."""

    def __init__(self, work: str, count: int) -> None:
        program = PROGRAM.format(work=work, count=count)
        command = [sys.executable, "-c", program]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.pids: list[int] = []

    def child(self) -> tuple[int, int]:
        """The number and the pid of the next that starts."""
        assert self.process.stdout is not None
        number, pid = map(int, self.process.stdout.readline().split())
        self.pids.append(pid)
        return number, pid

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pid in self.pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def parent() -> Iterator[Callable[[str, int], Parent]]:
    parents: list[Parent] = []

    def begin(work: str = "time.sleep(60)", count: int = 2) -> Parent:
        parents.append(Parent(work, count))
        return parents[-1]

    yield begin
    for one in parents:
        one.end()


def alive(pid: int) -> bool:
    """Whether it runs; what nobody has waited for yet does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def vanish(*pids: int) -> bool:
    """Whether all of them end soon."""
    end = time.monotonic() + PATIENCE
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_one_that_is_killed_is_started_again_under_its_number(parent: Callable[..., Parent]) -> None:
    one = parent()
    pids = dict(one.child() for _ in range(2))
    os.kill(pids[1], signal.SIGKILL)
    number, pid = one.child()
    assert number == 1 and pid not in pids.values()


def test_a_signal_ends_all(parent: Callable[..., Parent]) -> None:
    one = parent()
    pids = [one.child()[1] for _ in range(2)]
    one.process.terminate()
    assert one.process.wait(PATIENCE) == 0
    assert not any(alive(pid) for pid in pids)


def test_none_outlives_a_parent_that_is_killed(parent: Callable[..., Parent]) -> None:
    one = parent()
    pids = [one.child()[1] for _ in range(2)]
    assert all(map(alive, pids))
    one.process.kill()
    assert vanish(*pids)


def test_one_that_is_started_again_does_not_outlive_it_either(parent: Callable[..., Parent]) -> None:
    one = parent()
    _, first = one.child()
    one.child()
    os.kill(first, signal.SIGKILL)
    _, again = one.child()
    assert again != first and alive(again)
    one.process.kill()
    assert vanish(again)


def test_a_signal_ends_the_wait_for_the_next_start(parent: Callable[..., Parent]) -> None:
    one = parent("os._exit(1)", 1)
    for _ in range(3):
        one.child()
    one.process.terminate()
    assert one.process.wait(PATIENCE) == 0


def test_an_interrupt_from_the_terminal_comes_once(parent: Callable[..., Parent]) -> None:
    count = "seen = []; signal.signal(signal.SIGINT, lambda *_: seen.append(1)); " + (
        'os.write(1, b"0 %d\\n" % os.getpid()); time.sleep(1); os.write(1, b"%d 0\\n" % len(seen))'
    )
    one = parent(count, 1)
    one.child()
    one.child()
    os.killpg(one.process.pid, signal.SIGINT)
    assert one.child()[0] == 1
    one.pids.pop()
