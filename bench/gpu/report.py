"""What a command leaves behind: a JSON file, written anew after every result, and a short table as the last thing printed."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.gpu.place import ROOT, Place, describe

RESULTS = ROOT / "bench" / "results" / "gpu"


class Report:
    """One command's results. What was found before a crash or a time limit is on disk."""

    def __init__(self, name: str, place: Place, command: list[str], out: Path | None) -> None:
        self.path = out or RESULTS / f"{name}-{datetime.now(UTC):%Y-%m-%d}.json"
        self.data: dict[str, Any] = {"name": name, "machine": describe(place, command), "skipped": []}
        self.rows: list[list[str]] = []

    def put(self, key: str, value: Any) -> None:
        """One result, on disk at once."""
        self.data[key] = value
        self.write()

    def row(self, *cells: object) -> None:
        """A line of the table; printed now too, for whoever watches."""
        line = [_shown(cell) for cell in cells]
        self.rows.append(line)
        print("  ".join(line), flush=True)

    def skip(self, what: str, why: str) -> None:
        """Something that was not done, and why."""
        self.data["skipped"].append({"what": what, "why": why})
        self.write()
        print(f"skipped {what}: {why}", flush=True)

    def write(self) -> None:
        """All of it, in place of what was there."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(f".{os.getpid()}.part")
        beside.write_text(json.dumps(_plain(self.data), indent=1) + "\n")
        beside.replace(self.path)

    def close(self, *heads: str) -> None:
        """The table under its heads, what was skipped, and where the file is."""
        self.write()
        print()
        print(table([list(heads), *self.rows]))
        for skipped in self.data["skipped"]:
            print(f"skipped: {skipped['what']} ({skipped['why']})")
        print(f"{self.data['machine']['card']}; {self.path}", flush=True)


class Budget:
    """So many minutes for a command. What no longer fits is skipped, and said to be."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def fits(self, report: Report, what: str, seconds: float) -> bool:
        """Whether there is time for something that takes about so long; if not, the report says so."""
        if self.left >= seconds:
            return True
        report.skip(what, f"{max(self.left, 0.0):.0f} s are left, about {seconds:.0f} are needed")
        return False


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _shown(cell: object) -> str:
    if not isinstance(cell, float):
        return str(cell)
    if cell != cell:
        return "nan"
    return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:,.0f}"


def _plain(value: Any) -> Any:
    """As strict JSON has it: what is not a finite number becomes a word."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
