"""The files a model is made of: which container, which paths, what it is called.

A `ModelFiles` is what the resolver hands to everyone else. It knows paths and small JSON files; it knows no tensor and
no architecture.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inference_stack.core.errors import unsupported_model

Progress = Callable[[str, int, int], None]
"""Called as (what, bytes done, bytes in all) while something is downloaded or read; all is 0 while unknown."""

MAX_JSON_BYTES = 64 << 20
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """One model on this machine's disk.

    `kind` names the container of the weights and of everything beside them: a GGUF file holds its configuration,
    tokenizer and chat template itself, a safetensors directory has them as JSON files. `name` is what the model is
    called unless told otherwise, `root` the directory of the files, `weights` the container files in order; there are none where
    weights shall be drawn at random.
    """

    kind: Literal["gguf", "safetensors"]
    name: str
    root: Path
    weights: tuple[Path, ...]

    @property
    def total_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(path.stat().st_size for path in self.weights)

    def json(self, filename: str) -> dict[str, Any] | None:
        """The JSON object in `root/filename`, None where there is no such file. Raises a typed error if it is not one.

        A GGUF file stands for itself: what lies beside it is not read.
        """
        path = self.root / filename
        if self.kind == "gguf" or not path.is_file():
            return None
        return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of bounded size. Raises `unsupported_model` naming the file when it is anything
    else.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise unsupported_model(f"{path} is larger than {MAX_JSON_BYTES} bytes.")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise unsupported_model(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise unsupported_model(f"{path} does not hold a JSON object.")
    return value
