"""Workloads from plain mappings, as a YAML file has them: `workload_from` is the one way in.

Names of settings and their ranges live here; what they do, in the classes they end up in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from inference_stack.core.request import PRIORITY_CLASSES
from inference_stack.simulator.api import Workload
from inference_stack.simulator.tokens import derive
from inference_stack.simulator.workloads.azure import azure_rows
from inference_stack.simulator.workloads.burstgpt import burstgpt_rows
from inference_stack.simulator.workloads.generated import Generated
from inference_stack.simulator.workloads.mix import Mix
from inference_stack.simulator.workloads.mooncake import mooncake_rows
from inference_stack.simulator.workloads.plain_content import content_from
from inference_stack.simulator.workloads.processes import Constant, Diurnal, Gamma, Mmpp, Poisson, Process, State
from inference_stack.simulator.workloads.reader import Reader
from inference_stack.simulator.workloads.rows import Row
from inference_stack.simulator.workloads.tenants import Tenant
from inference_stack.simulator.workloads.trace import Trace


def workload_from(
    plain: Mapping[str, Any], *, base: Path | None = None, seed: int = 0, origin: str = "workload"
) -> Workload:
    """The workload that a mapping describes by its `kind`: an arrival process, a trace, or a `mix` of `parts`.

    `base` is the directory that a trace's `path` is relative to, `seed` serves where the mapping gives none, `origin` begins every
    message. Raises `InferenceError` naming the key for an unknown key, a bad value, or a trace that is not there.
    """
    reader = Reader(plain, origin)
    return _workload(reader, base or Path(), reader.whole("seed", seed))


def _workload(reader: Reader, base: Path, seed: int) -> Workload:
    kind = reader.choice("kind", {**_PROCESSES, **_TRACES, "mix": None})
    found: Workload
    if kind == "mix":
        found = _mix(reader, base, seed)
    elif kind in _TRACES:
        found = _trace(reader, base, seed, _TRACES[kind])
    else:
        found = _generated(reader, seed, _PROCESSES[kind])
    reader.close()
    return found


def _mix(reader: Reader, base: Path, seed: int) -> Mix:
    parts = reader.items("parts")
    if not parts:
        raise reader.error("parts", "expected a list of workloads")
    # With its place in the seed, a part differs from its neighbour even where both were given the same one.
    seeds = (derive(seed, index, part.whole("seed", 0)) for index, part in enumerate(parts))
    return Mix(tuple(_workload(part, base, seed) for part, seed in zip(parts, seeds, strict=True)))


def _generated(reader: Reader, seed: int, process: Callable[[Reader], Process]) -> Generated:
    if not (reader.has("duration") or reader.has("limit")):
        raise reader.error("duration", "is needed, or else limit: the workload would never end")
    return Generated(
        process=process(reader),
        content=content_from(reader),
        tenants=_tenants(reader),
        duration=reader.number("duration", math.inf, above=0.0),
        limit=_limit(reader),
        scale=reader.number("scale", 1.0, above=0.0),
        seed=seed,
    )


def _trace(reader: Reader, base: Path, seed: int, read: Callable[[Path], Iterator[Row]]) -> Trace:
    path = base / reader.text("path")
    if not path.is_file():
        raise reader.error("path", f"there is no file {path}")
    return Trace(
        path=path,
        read=read,
        tenants=_tenants(reader),
        start=reader.number("start", 0.0),
        duration=reader.number("duration", math.inf, above=0.0),
        limit=_limit(reader),
        scale=reader.number("scale", 1.0, above=0.0),
        speed=reader.number("speed", 1.0, above=0.0),
        seed=seed,
    )


def _limit(reader: Reader) -> int | None:
    return reader.whole("limit", low=1) if reader.has("limit") else None


def _tenants(reader: Reader) -> tuple[Tenant, ...]:
    return tuple(_tenant(item) for item in reader.items("tenants"))


def _tenant(reader: Reader) -> Tenant:
    tenant = Tenant(
        name=reader.text("name"),
        share=reader.number("share", 1.0, above=0.0),
        weight=reader.number("weight", 1.0, above=0.0),
        priority=_priority(reader),
        ttft_deadline=_seconds(reader, "ttft_deadline"),
        deadline=_seconds(reader, "deadline"),
    )
    reader.close()
    return tenant


def _priority(reader: Reader) -> int:
    """A class by name, or a number between the highest and the lowest of them."""
    given = reader.raw("priority")
    if isinstance(given, str) and given in PRIORITY_CLASSES:
        return PRIORITY_CLASSES[given]
    low, high = min(PRIORITY_CLASSES.values()), max(PRIORITY_CLASSES.values())
    if given is None:
        return 0
    if type(given) is int and low <= given <= high:
        return given
    raise reader.error("priority", f"expected {', '.join(PRIORITY_CLASSES)} or {low} to {high}, not {given!r}")


def _seconds(reader: Reader, key: str) -> float | None:
    return reader.number(key, above=0.0) if reader.has(key) else None


def _rate(reader: Reader) -> float:
    return reader.number("rate", above=0.0)


def _gamma(reader: Reader) -> Gamma:
    return Gamma(_rate(reader), reader.number("cv", above=0.0))


def _mmpp(reader: Reader) -> Mmpp:
    states = reader.items("states")
    found = tuple(State(item.number("rate"), item.number("dwell", above=0.0)) for item in states)
    for item in states:
        item.close()
    if len(found) < 2 or not any(state.rate for state in found):
        raise reader.error("states", "expected at least two, each with rate and dwell, and one rate above 0")
    return Mmpp(found)


def _diurnal(reader: Reader) -> Diurnal:
    rates = tuple(reader.numbers("rates"))
    if not any(rates):
        raise reader.error("rates", "expected the curve's rates, one of them above 0")
    return Diurnal(rates, reader.number("period", 86_400.0, above=0.0))


_PROCESSES: Final[dict[str, Callable[[Reader], Process]]] = {
    "constant": lambda reader: Constant(_rate(reader)),
    "poisson": lambda reader: Poisson(_rate(reader)),
    "gamma": _gamma,
    "mmpp": _mmpp,
    "diurnal": _diurnal,
}
_TRACES: Final[dict[str, Callable[[Path], Iterator[Row]]]] = {
    "azure": azure_rows,
    "mooncake": mooncake_rows,
    "burstgpt": burstgpt_rows,
}
