"""Fetches a model from the Hugging Face hub into its usual cache, by its own client.

So HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they always mean. Only safetensors or one GGUF file, and
the JSON and text files beside them, are ever asked for. The client continues downloads that broke; that what it brought is
what the hub announced (its large files are named by their SHA-256) is checked here. Knows repositories; what is in the files is
checked elsewhere.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from inference_stack.artifacts.failures import download_failed
from inference_stack.artifacts.files import Progress, silent
from inference_stack.artifacts.revision import sha256

HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<file>[\w./-]+\.gguf))?")
"""`org/name`, or `org/name:file.gguf`."""

SHA256 = re.compile(r"[0-9a-f]{64}")
WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
UNWANTED = ["*/*", "consolidated*"]
"""Directories (other formats, training states) and a second copy of the weights that some repositories have."""


def fetch(repo: str, filename: str | None = None, offline: bool = False, progress: Progress = silent) -> Path:
    """The local directory of a repository's snapshot, downloaded as far as needed. With `filename`, only that file is.

    Raises `download_failed` with the hub's own reason and what to do.
    """
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise download_failed(f"To fetch {repo} from the Hugging Face hub, `pip install huggingface-hub`.") from error
    blobs = _blobs(repo)
    known = set(os.listdir(blobs)) if blobs.is_dir() else set()
    try:
        snapshot = snapshot_download(
            repo,
            allow_patterns=[filename] if filename else WANTED,
            ignore_patterns=None if filename else UNWANTED,
            local_files_only=offline,
            tqdm_class=_bar(f"download {repo}", progress),
        )
    except Exception as error:  # Its client raises errors of its own, of its transport and of the system.
        raise download_failed(_explained(repo, offline, error)) from error
    for name in sorted(os.listdir(blobs) if blobs.is_dir() else ()):
        if name not in known and SHA256.fullmatch(name):
            _verify(repo, blobs / name, progress)
    return Path(snapshot)


def _blobs(repo: str) -> Path:
    """Where the client keeps a repository's files, each named by its hash."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    return Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"


def _verify(repo: str, blob: Path, progress: Progress) -> None:
    """Raise `download_failed` for a file that is not what its name says, and remove it."""
    size = blob.stat().st_size
    if (found := sha256(blob, lambda done: progress(f"verify {repo}", done, size))) != blob.name:
        blob.unlink()
        raise download_failed(
            f"A file of {repo} ({size} bytes) arrived damaged: its SHA-256 is {found}, the hub announced {blob.name}. It "
            f"was removed; try again."
        )


def _explained(repo: str, offline: bool, error: Exception) -> str:
    reason = " ".join(str(error).split())[:400]
    tried = "looked in the local Hugging Face cache only (offline)" if offline else "asked the Hugging Face hub"
    return (
        f"Could not get {repo}: {tried}; {type(error).__name__}: {reason} Without a network: copy the model's "
        f"directory (config.json, tokenizer files, *.safetensors) here and give its path, or set HF_HOME to a cache "
        f"that has it. For private or gated repositories set HF_TOKEN."
    )


def _bar(what: str, progress: Progress) -> type[Any]:
    """A progress bar class that draws nothing and reports bytes, for the client to make its bars of."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            self.counts_bytes = options.get("unit") == "B"
            super().__init__(*args, **options)

        def display(self, *args: Any, **options: Any) -> None:
            """Nothing is drawn."""

        def update(self, n: float | None = 1) -> None:
            super().update(n)
            if self.counts_bytes:
                progress(what, int(self.n), int(self.total or 0))

    return Bar
