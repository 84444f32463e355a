"""What a command runs on: a card, or the CPU in its place; and what has to be known of it to believe its numbers."""

from __future__ import annotations

import importlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import inference_stack

PACKAGES = ("torch", "triton", "numpy", "safetensors", "transformers", "vllm", "tokenspeed-fa3", "humming-kernels")
ROOT = Path(__file__).parents[2]
LOOK_SECONDS = 0.2
"""How often it is looked whether a process of ours should be ended."""


@dataclass(frozen=True, slots=True)
class Place:
    """A device for torch. `tiny` asks for the smallest sizes that go through all of the code."""

    device: torch.device
    tiny: bool = False

    @property
    def on_card(self) -> bool:
        """Whether work is queued, and has to be waited for."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """The activations' type: bf16 on cards; fp32 on CPUs, where Triton's interpreter gets bf16 wrong."""
        return torch.bfloat16 if self.on_card else torch.float32

    def wait(self) -> None:
        """Until all queued work is done."""
        if self.on_card:
            torch.cuda.synchronize(self.device)

    def generator(self, seed: int) -> torch.Generator:
        """Random numbers drawn on the device."""
        return torch.Generator(self.device).manual_seed(seed)

    def random(self, *shape: int, seed: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Normal numbers; never zeros, on which some cards are faster."""
        drawn = torch.empty(shape, dtype=dtype or self.dtype, device=self.device)
        return drawn.normal_(generator=self.generator(seed))

    def free(self) -> int:
        """Bytes that can be taken."""
        return torch.cuda.mem_get_info(self.device)[0] if self.on_card else 1 << 28

    @property
    def cache_bytes(self) -> int:
        """Of the card's last cache; 0 on CPUs, where nothing is measured."""
        if not self.on_card:
            return 0
        return int(getattr(torch.cuda.get_device_properties(self.device), "L2_cache_size", 0))


def open_place(name: str, tiny: bool) -> Place:
    """The place called `auto`, `cpu`, `cuda` or `cuda:N`. Raises `SystemExit` where torch finds no such card."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit(f"torch {torch.__version__} finds no GPU that it can use; try --device cpu --tiny")
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    return Place(device, tiny)


def describe(place: Place, command: list[str]) -> dict[str, Any]:
    """Everything that a number depends on and that is not the code: date, versions, card, driver, command."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m bench.gpu", *command]),
        "python": platform.python_version(),
        "kernel": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {"inference-stack": inference_stack.__version__, **_versions()},
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"),
        "tiny": place.tiny,
    }
    return found | (_card(place.device) if place.on_card else {"card": "none: this ran on a CPU and is no measurement"})


def _card(device: torch.device) -> dict[str, Any]:
    facts = torch.cuda.get_device_properties(device)
    wanted = "driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw"
    return {
        "card": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "memory_bytes": facts.total_memory,
        "multiprocessors": facts.multi_processor_count,
        "l2_bytes": getattr(facts, "L2_cache_size", None),
        "toolkit": torch.version.cuda or torch.version.hip,
        "driver, clocks, temperature, power": _output("nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader"),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown: {error}"
    return done.stdout.strip() if done.returncode == 0 else f"unknown: {done.stderr.strip()[:200]}"


def missing(*modules: str) -> str | None:
    """Why the first of these modules that cannot be imported cannot be; None where all can."""
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken installation raises anything
            return f"{name}: {type(error).__name__}: {error}"[:300]
    return None


def apart(
    arguments: list[str], seconds: float, tell: Callable[[str], None], stop: Callable[[], bool] = lambda: False
) -> int:
    """Run a command of this package in a process of its own, for so long at most. Its exit status; 124 when it was ended."""
    command = [sys.executable, "-m", "bench.gpu", *arguments]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    status = bounded(command, max(seconds, 1.0), stop, os.environ | {"PYTHONPATH": paths})
    if status is None:
        tell(f"ended after {seconds:.0f} s: {' '.join(arguments)}")
    return 124 if status is None else status


def bounded(
    command: Sequence[str],
    seconds: float,
    stop: Callable[[], bool] = lambda: False,
    environment: Mapping[str, str] | None = None,
) -> int | None:
    """Run a command until it ends, so many seconds have passed, or `stop`. Its exit status; None when it was ended.

    Whatever it started and left behind is ended with it: a card's memory is free again only when all of them are gone.
    """
    last = time.monotonic() + seconds
    child = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        while (left := last - time.monotonic()) > 0 and not stop():
            with suppress(subprocess.TimeoutExpired):
                return child.wait(min(left, LOOK_SECONDS))
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
