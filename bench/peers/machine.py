"""What a measurement was made on: processor, its instructions, kernel, load, packages, time."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import inference_stack

FLAGS = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8", "neon")
OWN = ("torch", "numpy", "tokenizers")


def describe() -> dict[str, Any]:
    """The machine and our own environment, now."""
    cpu = _cpuinfo()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu.get("model name", platform.processor()),
        "family_model_stepping": [cpu.get(key) for key in ("cpu family", "model", "stepping")],
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in FLAGS if flag in cpu.get("flags", "").split()],
        "cache": cpu.get("cache size"),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6,
        "kernel": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "versions": {"inference-stack": inference_stack.__version__, **{name: version(name) for name in OWN}},
        "commit": _commit(),
    }


def _cpuinfo() -> dict[str, str]:
    block = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _commit() -> str:
    root = Path(inference_stack.__file__).parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
