"""Tiny models on disk, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.house import save_tiny
from tests.ops.triton import conftest as interpreter  # noqa: F401  engines may run GPU kernels here too


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories by name: one KV group (llama), two (gemma3: sliding and full layers)."""
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny(name, root / name) for name in ("llama", "gemma3", "qwen3")}
