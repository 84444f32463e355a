"""Real child processes: readiness, failure, memory, and a restless one that is put to sleep."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.peers.process import Process


def child(code: str, log: Path) -> Process:
    return Process([sys.executable, "-c", code], {}, log / "log", piped=True)


def changed(process: Process, kind: int) -> int:
    """Wait until the child stops or goes on, and say which the kernel reports."""
    found = os.waitid(os.P_PID, process.child.pid, kind)
    return found.si_code if found is not None else 0


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Process]:
    process = child("import sys; print('up', flush=True); sys.stdin.read()", tmp_path)
    assert process.pipes()[1].readline() == b"up\n"
    yield process
    process.stop()


def test_readiness_is_timed_from_the_start(sleeper: Process) -> None:
    assert sleeper.wait(lambda: True) > 0


def test_one_that_ends_says_its_last_words(tmp_path: Path) -> None:
    process = child("import sys; sys.exit('no such model')", tmp_path)
    with pytest.raises(RuntimeError, match="status 1: no such model"):
        process.wait(lambda: False)
    process.stop()


def test_memory_is_counted_over_the_processes(sleeper: Process) -> None:
    found = sleeper.memory_mb()
    assert 0 < found["pss_mb"] <= found["peak_rss_mb"]


def test_only_a_restless_one_is_stopped_and_it_can_go_on(sleeper: Process) -> None:
    sleeper.pause()
    assert not sleeper.frozen
    sleeper.restless = True
    sleeper.pause()
    assert changed(sleeper, os.WSTOPPED) == os.CLD_STOPPED
    sleeper.resume()
    assert changed(sleeper, os.WCONTINUED) == os.CLD_CONTINUED


def test_a_frozen_one_can_be_ended(tmp_path: Path) -> None:
    process = child("import sys; sys.stdin.read()", tmp_path)
    process.restless = True
    process.pause()
    process.stop()
    assert process.child.returncode is not None


def test_a_start_that_fails_leaves_nothing_running(tmp_path: Path) -> None:
    process = child("import sys; sys.stdin.read()", tmp_path)
    with pytest.raises(KeyboardInterrupt), process.or_stop():
        raise KeyboardInterrupt
    assert process.child.returncode is not None
