"""A report apart from its run: the summary with what its charts need, small enough to keep, as one JSON file.

Requests are kept as distributions, not one by one, so a file's size does not grow with the traffic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inference_stack.core.errors import invalid
from inference_stack.simulator.api import FloatArray, Run, Series
from inference_stack.simulator.report.numbers import Requests
from inference_stack.simulator.report.svg import Curve

FORMAT = "inference-stack simulation"
VERSION = 1

# Where a distribution is kept: every percent, finer in the tail that objectives are about.
_SHARES = np.concatenate((np.linspace(0, 0.9, 91), np.linspace(0.901, 0.999, 99), np.linspace(0.9991, 1, 10)))


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is shown of a run, and kept. `curves` are the distributions of TTFT, e2e and ITL in seconds."""

    summary: dict[str, Any]
    config: dict[str, Any]
    events: list[tuple[float, str]]
    series: Series
    itl_edges: FloatArray
    itl_counts: npt.NDArray[np.int64]
    curves: dict[str, Curve]


def report_of(run: Run, summary: dict[str, Any]) -> Report:
    """The report of a run whose numbers are `summary`."""
    requests = Requests.of(run.outcomes)
    return Report(
        summary=summary,
        config=_plain(run.config),
        events=[(float(time), what) for time, what in run.events],
        series=run.series,
        itl_edges=run.itl_edges,
        itl_counts=run.itl_counts,
        curves={
            "ttft": _curve("TTFT", requests.ttft),
            "itl": _histogram_curve("ITL", run.itl_edges, run.itl_counts),
            "e2e": _curve("e2e", requests.e2e),
        },
    )


def write_json(run: Run, summary: dict[str, Any], path: Path) -> None:
    """Keep the report of a run. Raises OSError, and ValueError for a number that JSON does not have."""
    path.write_text(dumps(report_of(run, summary)), encoding="utf-8")


def dumps(report: Report) -> str:
    """The report as strict JSON."""
    plain = {
        "format": FORMAT,
        "version": VERSION,
        "summary": report.summary,
        "config": report.config,
        "events": report.events,
        "series": {name: _listed(getattr(report.series, name)) for name in _series_names()},
        "itl": {"edges": _listed(report.itl_edges), "counts": report.itl_counts.tolist()},
        "curves": {
            key: {"name": curve.name, "values": curve.values.tolist(), "shares": curve.shares.tolist()}
            for key, curve in report.curves.items()
        },
    }
    return json.dumps(plain, allow_nan=False, ensure_ascii=False)


def read(path: Path) -> Report:
    """A kept report. Raises `InferenceError` where the file cannot be read or is no such report."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["format"] != FORMAT:
            raise ValueError(f"its format is {plain['format']!r}")
        if plain["version"] > VERSION:
            raise ValueError(f"its version {plain['version']} is newer than {VERSION}")
        return _parsed(plain)
    except OSError as error:
        raise invalid(f"{path}: {error.strerror}", code="invalid_report") from error
    except KeyError as error:
        raise invalid(f"{path} is not a simulation report: it has no {error}", code="invalid_report") from error
    except (TypeError, ValueError) as error:
        raise invalid(f"{path} is not a simulation report: {error}", code="invalid_report") from error


def _parsed(plain: Mapping[str, Any]) -> Report:
    series, itl = plain["series"], plain["itl"]
    return Report(
        summary=dict(plain["summary"]),
        config=dict(plain["config"]),
        events=[(float(time), str(what)) for time, what in plain["events"]],
        series=Series(**{name: _unlisted(series[name]) for name in _series_names()}),
        itl_edges=_array(itl["edges"]),
        itl_counts=np.array(itl["counts"], dtype=np.int64),
        curves={
            key: Curve(str(curve["name"]), _array(curve["values"]), _array(curve["shares"]))
            for key, curve in plain["curves"].items()
        },
    )


def _series_names() -> list[str]:
    return [column.name for column in fields(Series)]


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _unlisted(value: Any) -> Any:
    return _array(value) if isinstance(value, list) else float(value)


def _array(values: list[float]) -> FloatArray:
    return np.array(values, dtype=np.float64)


def _curve(name: str, values: FloatArray) -> Curve:
    known = values[~np.isnan(values)]
    if not known.size:
        return Curve(name, known, known)
    return Curve(name, np.quantile(known, _SHARES), _SHARES)


def _histogram_curve(name: str, edges: FloatArray, counts: npt.NDArray[np.int64]) -> Curve:
    """From the first bin with anything in it to the last."""
    filled = np.flatnonzero(counts)
    if not filled.size:
        return Curve(name, np.array([]), np.array([]))
    shown = slice(int(filled[0]), int(filled[-1]) + 2)
    shares = np.concatenate(([0], np.cumsum(counts))) / counts.sum()
    return Curve(name, edges[shown], shares[shown])


def _plain(value: Any) -> Any:
    """As JSON and YAML can hold it: paths, sets of choices and infinities as the text that people write for them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)
