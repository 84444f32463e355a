"""The rows of a recorded trace, whatever its format, and the reading of files line by line.

Lengths and times only: what becomes of them is the workload's.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TextIO

from inference_stack.core.errors import InferenceError, invalid

BLOCK: Final = 512
"""Tokens of a prompt that one name in `Row.blocks` stands for."""


class Row(NamedTuple):
    """One recorded request, in that line of its file. `at` is seconds since any fixed moment. No `output_tokens`: it failed.

    `blocks` name the prompt's contents, `BLOCK` tokens each, the last one perhaps fewer; empty where the trace does not tell.
    """

    line: int
    at: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


class Place(NamedTuple):
    """A line of a file, counted from 1."""

    path: Path
    line: int

    def problem(self, message: str) -> InferenceError:
        """An error about this line."""
        return invalid(f"{self.path}, line {self.line}: {message}", param="path", code="invalid_trace")


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """The file as text. Raises `InferenceError` if it cannot be read or is no text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise invalid(f"{path}: the trace cannot be read: {error}", param="path", code="invalid_trace") from error


def columns(path: Path, names: Sequence[str]) -> Iterator[tuple[Place, list[str]]]:
    """The values of those columns in each row of a CSV file with a header. Raises `InferenceError` for a row without them."""
    with opened(path) as file:
        lines = csv.reader(file)
        header = [name.strip() for name in next(lines, [])]
        missing = [name for name in names if name not in header]
        if missing:
            raise Place(path, 1).problem(f"the header has no column {', '.join(missing)}")
        wanted = [header.index(name) for name in names]
        for values in lines:
            place = Place(path, lines.line_num)
            if len(values) > max(wanted):
                yield place, [values[index] for index in wanted]
            elif values:
                raise place.problem(f"expected {len(header)} columns, found {len(values)}")


def count(place: Place, what: str, text: str, low: int = 1) -> int:
    """A number of tokens. Raises `InferenceError` if it is none, or below `low`."""
    try:
        value = int(text)
    except ValueError:
        raise place.problem(f"{what}: expected a whole number, not {text!r}") from None
    if value < low:
        raise place.problem(f"{what}: expected at least {low}, not {value}")
    return value
