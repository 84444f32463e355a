"""The load generator from here: compiled when it is needed, run with a plan, its account read.

The program is load.c; it is kept in the cache by the hash of its source. Knows no server.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_stack.artifacts.catalogue import default_cache_dir

SOURCE = Path(__file__).with_name("load.c")
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
MARK = "@@@@@@@@"
"""In a body, replaced by the request's number: no two prompts begin alike."""

Progress = Callable[[dict[str, float]], None]


def compiler() -> str | None:
    """The C compiler of this machine, if there is one."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def program(folder: Path | None = None) -> Path:
    """The compiled generator. Raises `RuntimeError` without a compiler, or with its words."""
    cc = compiler()
    if cc is None:
        raise RuntimeError("the load generator needs a C compiler (cc, gcc or clang)")
    source = b"".join(file.read_bytes() for file in sorted(SOURCE.parent.glob("*.[ch]")))
    digest = hashlib.sha256(source + " ".join(FLAGS).encode()).hexdigest()[:16]
    target = (folder or default_cache_dir() / "bench") / f"load-{digest}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        done = subprocess.run(
            [cc, *FLAGS, "-o", str(part), str(SOURCE), "-lm"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"the load generator does not compile: {done.stderr[-1500:]}")
        part.rename(target)
    return target


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One run of the generator. `rate` requests per second make an open loop; otherwise `concurrency` at once."""

    port: int
    body: str
    tokens: int
    seconds: float
    rate: float = 0.0
    concurrency: int = 0
    requests: int = -1
    timeout: float = 30.0
    ramp: float = 0.0
    seed: int = 1
    bearer: str = ""
    path: str = "/v1/chat/completions"

    def arguments(self) -> list[str]:
        """For the command line, but for the body."""
        loop = ["--rate", f"{self.rate:.3f}", "--poisson"] if self.rate else ["--concurrency", str(self.concurrency)]
        named = {
            "port": self.port,
            "path": self.path,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "requests": self.requests,
            "timeout": self.timeout,
            "ramp": self.ramp,
            "seed": self.seed,
        }
        words = [word for name, value in named.items() for word in (f"--{name}", str(value))]
        return [*loop, *words, *(["--bearer", self.bearer] if self.bearer else [])]


def _listen(lines: Iterable[str], progress: Progress | None) -> list[str]:
    """Hand its progress on; what else it said."""
    words = []
    for line in lines:
        if progress is not None and line.startswith("{"):
            progress(json.loads(line))
        else:
            words.append(line)
    return words


def fire(shot: Shot, progress: Progress | None = None) -> dict[str, Any]:
    """Run it and return its account. `progress` hears of it every second. Raises `RuntimeError` if the generator cannot run."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as body:
        body.write(shot.body)
        body.flush()
        command = [str(program()), "--body", body.name, *shot.arguments(), *(["--progress"] if progress else [])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            words = _listen(child.stderr or (), progress)
            account = child.stdout.read() if child.stdout else ""
    if child.returncode:
        raise RuntimeError(f"the load generator failed: {''.join(words)}")
    found: dict[str, Any] = json.loads(account)
    return found
