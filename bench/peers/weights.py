"""The one model in the forms that the peers read, each made once from the GGUF file and kept.

shipped ─▸ q4_0 (llama.cpp's fastest type)
        └▸ fp32 safetensors ─▸ int8 for OpenVINO
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.peers.environments import program

DRIVERS = Path(__file__).parent / "drivers"

NEEDS = {
    "shipped": (),
    "q4_0": ("llamacpp",),
    "fp32": ("transformers",),
    "openvino-int8": ("transformers", "openvino-export"),
}
"""Environments whose programs make a form."""


def form(name: str, home: Path, source: Path) -> Path:
    """The path of the model in form `name`, made now if it is missing. Raises `RuntimeError` if that fails."""
    if name == "shipped":
        return source
    root = home / "models" / f"{source.stem}-{source.stat().st_size}"
    root.mkdir(parents=True, exist_ok=True)
    target = root / (f"{source.stem}.q4_0.gguf" if name == "q4_0" else name)
    if not target.exists():
        _make(name, home, source, target)
    return target


def _make(name: str, home: Path, source: Path, target: Path) -> None:
    if name == "q4_0":
        _run([program(home, "llamacpp"), DRIVERS / "requantise.py", source, target])
    elif name == "fp32":
        _run([program(home, "transformers"), DRIVERS / "to_safetensors.py", source, target])
    else:
        part = target.with_name(target.name + ".part")
        command: list[Path | str] = [
            program(home, "openvino-export", "optimum-cli"),
            "export",
            "openvino",
            "-m",
            form("fp32", home, source),
        ]
        _run([*command, "--task", "text-generation-with-past", "--weight-format", "int8", part])
        part.rename(target)


def _run(command: list[Path | str]) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[1]} failed: {(done.stderr or done.stdout)[-1500:].strip()}")
