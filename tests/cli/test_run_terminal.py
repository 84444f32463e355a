"""`istack run` as a person uses it: a terminal, a server of its own, Ctrl-C in the middle of an answer."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(300)]

COMMAND = [sys.executable, "-m", "inference_stack.cli.main", "run", "smollm2"]


class Terminal:
    """The master side of a pseudo-terminal in which the command runs."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        # A session of its own makes the pseudo-terminal the controlling one, so that Ctrl-C becomes SIGINT.
        leader = (
            "import os, sys, fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        )
        command = [sys.executable, "-c", leader, *COMMAND, *arguments]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=subprocess.DEVNULL, start_new_session=True
        )
        os.close(slave)
        self.unread = b""

    def read_until(self, text: str) -> None:
        """Read up to and including `text`; what follows it stays for the next call."""
        while text.encode() not in self.unread:
            self.unread += os.read(self.master, 4096)
        self.unread = self.unread.partition(text.encode())[2]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(demo_model: Path) -> None:
    terminal = Terminal("--max-tokens", "2000", "--temperature", "0")
    terminal.read_until(">>> ")
    terminal.type("Write a very long story about a lighthouse.\n")
    terminal.read_until("the ")
    terminal.type("\x03")
    terminal.read_until("(stopped)")
    terminal.read_until(">>> ")
    children = psutil.Process(terminal.process.pid).children(recursive=True)
    terminal.type("/exit\n")
    assert terminal.process.wait(60) == 0
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_a_single_prompt_is_answered_and_the_server_ends(demo_model: Path) -> None:
    command = [*COMMAND, "What is the capital of France?", "--max-tokens", "8", "--temperature", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert any(letter.isalpha() for letter in done.stdout)
