"""A name for what a model's files contain: equal on every machine that has the same bytes, whatever paths and dates
say.

Up to 1 GiB of weights every byte is hashed. Beyond, start-up would wait for it, so the hash covers sizes, headers (the
first MiB of each file) and 1,024 evenly spread samples of 64 KiB: enough to tell revisions apart, not to detect
tampering.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from inference_stack.artifacts.files import ModelFiles

WHOLE_BYTES = 1 << 30
HEADER_BYTES = 1 << 20
SAMPLE_BYTES = 1 << 16
SAMPLES = 1024
PIECE_BYTES = 1 << 20
REVISION_CHARS = 32


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def revision(files: ModelFiles) -> str:
    """32 hexadecimal digits that identify the weights and the configuration they are read with."""
    digest = hashlib.sha256()
    whole = files.total_bytes <= WHOLE_BYTES
    config = files.root / "config.json"
    if files.kind == "safetensors" and config.is_file():
        digest.update(config.read_bytes())
    for path in files.weights:
        size = path.stat().st_size
        digest.update(b"\0%d\0" % size)
        with path.open("rb") as file:
            _update_whole(digest, file) if whole else _update_samples(digest, file, size)
    return digest.hexdigest()[:REVISION_CHARS]


def sha256(path: Path, seen: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a whole file, in hexadecimal; `seen` is told the bytes done so far."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        _update_whole(digest, file, seen)
    return digest.hexdigest()


def _update_whole(digest: _Hash, file: BinaryIO, seen: Callable[[int], None] | None = None) -> None:
    while piece := file.read(PIECE_BYTES):
        digest.update(piece)
        if seen:
            seen(file.tell())


def _update_samples(digest: _Hash, file: BinaryIO, size: int) -> None:
    digest.update(file.read(HEADER_BYTES))
    for sample in range(SAMPLES):
        file.seek(sample * max(size - SAMPLE_BYTES, 0) // (SAMPLES - 1))
        digest.update(file.read(SAMPLE_BYTES))
