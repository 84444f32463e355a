"""Texts to measure and to calibrate on, as windows of tokens. Two are in the package: what one is tuned on must not judge it."""

from __future__ import annotations

from importlib.resources import files as packaged
from pathlib import Path

from inference_stack.core.errors import invalid
from inference_stack.engine.quality import cut
from inference_stack.frontend.tokenizer import Tokenizer

EVALUATION = "evaluation.txt"
CALIBRATION = "calibration.txt"
WINDOW = 512
"""Tokens that a model reads at a time: long enough for attention to matter, short enough for every model."""


def bundled(name: str) -> str:
    """One of the package's texts."""
    return (packaged("inference_stack.cli.quality") / "data" / name).read_text(encoding="utf-8")


def read_text(path: Path | None) -> str:
    """The text in a file, or the package's own. Raises `InferenceError` when it cannot be read."""
    if path is None:
        return bundled(EVALUATION)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise invalid(f"{path}: {error.strerror}", param="text") from error
    except UnicodeDecodeError as error:
        raise invalid(f"{path}: not UTF-8 text", param="text") from error


def windows(text: str, tokenizer: Tokenizer, size: int) -> list[list[int]]:
    """A text in windows, each of which begins as the model's texts begin."""
    tokens = tokenizer.encode(text, add_special_tokens=False, allow_special=False)
    return cut(tokens, size, tokenizer.prefix)
