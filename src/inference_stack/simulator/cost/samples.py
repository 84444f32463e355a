"""Measured steps: what a step computed and how long it took, as JSON lines.

    {"tokens": 17, "rows": 2, "context": 145, "pairs": 265, "seconds": 0.0121}

Sizes are those of `api.CostModel.step_seconds`. Knows neither who measured nor what is learnt from it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from inference_stack.core.errors import InferenceError, invalid

LARGEST: Final = 10**15
"""Of a size or of seconds: more is no step, and would only overflow later."""
SIZES: Final = ("tokens", "rows", "context", "pairs")


class StepSample(NamedTuple):
    """One step: its sizes, and the seconds it took."""

    tokens: int
    rows: int
    context: int
    pairs: int
    seconds: float

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """What the step computed, without how long that took."""
        return self.tokens, self.rows, self.context, self.pairs


def sizes_of(starts: npt.ArrayLike, counts: npt.ArrayLike) -> tuple[int, int, int, int]:
    """(tokens, rows, context, pairs) of a step whose rows have `starts` tokens of KV and compute `counts` more, as
    `CostModel.step_seconds` takes them: each query sees itself and all before it."""
    start, count = np.asarray(starts, np.int64), np.asarray(counts, np.int64)
    tokens = int(count.sum())
    return tokens, len(count), int(start.sum()) + tokens, int((count * (2 * start + count + 1) // 2).sum())


def merge(samples: Iterable[StepSample]) -> list[StepSample]:
    """One sample per distinct size, with the median of its times, in order of first appearance. Undoes a busy machine's noise."""
    times: dict[tuple[int, int, int, int], list[float]] = {}
    for sample in samples:
        times.setdefault(sample.sizes, []).append(sample.seconds)
    return [StepSample(*sizes, statistics.median(seconds)) for sizes, seconds in times.items()]


def write_samples(path: Path, samples: Sequence[StepSample]) -> None:
    """Write a file of samples."""
    path.write_text("".join(json.dumps(sample._asdict()) + "\n" for sample in samples))


def read_samples(path: Path) -> list[StepSample]:
    """The samples of a file. Raises `InferenceError` naming the line that is not one, or if there are none."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise invalid(f"cannot read step samples: {path}: {error}", param="samples") from None
    samples = [_sample(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not samples:
        raise invalid(f"{path} holds no step samples", param="samples")
    return samples


def _sample(line: str, where: str) -> StepSample:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise invalid(f"{where}: not JSON: {error}", param="samples") from None
    if not isinstance(row, dict) or set(row) != {*SIZES, "seconds"}:
        raise _malformed(where)
    sizes, seconds = [row[name] for name in SIZES], row["seconds"]
    whole = all(type(size) is int and 0 <= size <= LARGEST for size in sizes)
    if not whole or type(seconds) not in (int, float) or not 0 < seconds <= LARGEST:
        raise _malformed(where)
    return StepSample(**row)


def _malformed(where: str) -> InferenceError:
    return invalid(
        f"{where}: a step sample has {', '.join(SIZES)} (whole numbers from 0) and seconds (more than 0), and nothing else",
        param="samples",
    )
