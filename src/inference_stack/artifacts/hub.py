"""Fetches a model from the Hugging Face hub into its usual cache, by its own client.

So HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they always mean. Only safetensors or one GGUF file, and
the JSON and text files beside them, are ever asked for. Knows repositories; what is in the files is checked elsewhere.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from inference_stack.artifacts.failures import download_failed
from inference_stack.artifacts.files import Progress, silent

HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<file>[\w./-]+\.gguf))?")
"""`org/name`, or `org/name:file.gguf`."""

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
    return Path(snapshot)


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
