"""`istack pull` and `istack models`: fetch model files with a progress bar, and say what is known and what is here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table

from inference_stack.artifacts.catalogue import available, cache_folder
from inference_stack.artifacts.files import ModelFiles
from inference_stack.artifacts.files import Progress as Report
from inference_stack.artifacts.resolve import resolve
from inference_stack.config.derive import settled
from inference_stack.config.load import load
from inference_stack.config.sizes import format_size
from inference_stack.config.tree import Config, ModelEntry
from inference_stack.core.errors import invalid


@contextmanager
def progress_bar(console: Console) -> Iterator[Report]:
    """A bar per thing that is fetched, drawn only once something is; yields what to call with progress."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    bar = Progress(*columns, console=console, transient=True)
    tasks: dict[str, TaskID] = {}

    def report(what: str, done: int, total: int) -> None:
        if not tasks:
            bar.start()
        if what not in tasks:
            tasks[what] = bar.add_task(what)
        bar.update(tasks[what], completed=done, total=total or None)

    try:
        yield report
    finally:
        bar.stop()


def fetch(models: Iterable[str], cache_dir: str, load_format: str = "auto") -> list[ModelFiles]:
    """The files of each model, downloaded with a progress bar where they are missing. Raises `InferenceError`."""
    folder = cache_folder(cache_dir)
    with progress_bar(Console(stderr=True)) as report:
        return [resolve(model, folder, progress=report, load_format=load_format) for model in models]


def fetch_served(config: Config) -> list[ModelFiles]:
    """`fetch` the models that a configuration serves."""
    return fetch([entry.model for entry in config.models], config.cache_dir, config.engine.load_format)


def fetch_configured(model: str, config: Path | None) -> ModelFiles:
    """`fetch` one model into the cache that the configuration names."""
    return fetch([model], load(config, os.environ).cache_dir)[0]


def placed(config: Config, files: list[ModelFiles]) -> Config:
    """The configuration with nothing left open, and every model at its place on disk, under the name that requests use. Raises on
    equal names."""
    entries = [
        ModelEntry(model=str(one.weights[0] if one.kind == "gguf" else one.root), name=entry.name or one.name)
        for entry, one in zip(config.models, files, strict=True)
    ]
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise invalid(f"two models are called {max(names, key=names.count)!r}; name them apart with NAME=MODEL")
    return settled(replace(config, models=tuple(entries)))


def pull_models(models: list[str], cache_dir: str) -> None:
    """Fetch models, and print where each lies."""
    for name, files in zip(models, fetch(models, cache_dir), strict=True):
        size = format_size(files.total_bytes)
        print(f"{name}: {files.kind}, {size}, {files.weights[0] if files.kind == 'gguf' else files.root}")


def list_models(cache_dir: str) -> None:
    """Print the known models as a table."""
    table = Table("name", "model", "licence", "size", "state", box=None, pad_edge=False)
    for entry in available(cache_folder(cache_dir)):
        model = entry.model
        state = "here" if entry.present else f"istack pull {model.name}"
        table.add_row(model.name, model.title, model.licence, format_size(model.nbytes), state)
    Console().print(table)
    print("\nAlso served: a GGUF file, a safetensors directory, a Hugging Face id (org/name or org/name:file.gguf).")
