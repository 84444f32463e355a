"""The measurements: sustained rate, the bar, added latency, many streams, memory over many requests.

Each starts its system alone, warms it up, and says what processors and memory every role used meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from bench.gateway import prometheus, usage
from bench.gateway.generator import Shot, fire
from bench.gateway.search import Search, confirm, sustained
from bench.gateway.systems import TOKENS, Running, Site, find, running

Tell = Callable[[str], None]

ENOUGH = 300
"""Requests of a trial, so that one late by chance is not a hundredth: at low rates trials last longer."""


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Lengths and limits common to all measurements, in seconds and milliseconds."""

    site: Site
    tell: Tell
    seed: int = 1
    trial_s: float = 6.0
    long_s: float = 60.0
    ttft_ms: float = 1000.0


def shoot(system: Running, shot: Shot, progress: Callable[[dict[str, float]], None] | None = None) -> dict[str, Any]:
    """One run of the generator: its account, and what every role used."""
    before = usage.read(system.processes)
    found = fire(shot, progress)
    after = usage.read(system.processes)
    found["cpu"] = usage.between(before, after, found["seconds"], found["ok"], found["cpu_s"])
    return found


def _shot(lab: Lab, system: Running, rate: float, seconds: float) -> Shot:
    return Shot(
        port=system.port,
        bearer=system.bearer,
        body=system.body(),
        tokens=TOKENS,
        rate=rate,
        seconds=seconds,
        timeout=15.0,
        seed=lab.seed,
    )


def _warm(lab: Lab, system: Running, guess: float) -> None:
    found = fire(_shot(lab, system, guess / 4, 4.0))
    if found["errors"]:
        raise RuntimeError(f"{found['errors']} of {found['sent']} requests failed at low load: {found['first_error']}")


def _line(name: str, found: dict[str, Any]) -> str:
    ttft, e2e = found["ttft_ms"], found["e2e_ms"]
    shares = {role: row["busiest_core_share"] for role, row in found["cpu"].items() if role != "others"}
    return (
        f"{name}: {found['offered_per_s']:.0f}/s asked, {found['achieved_per_s']:.0f} achieved, {found['errors']} errors, "
        f"TTFT {ttft['p50']:.1f}/{ttft['p99']:.1f} ms, e2e {e2e['p50']:.1f}/{e2e['p99']:.1f} ms, cores {shares}"
    )


def sustained_rate(lab: Lab, name: str, guess: float = 0.0) -> dict[str, Any]:
    """The highest rate kept in short trials, then one that also holds for long."""
    with running(name, lab.site) as system:
        start = guess or find(name)[0].guess
        _warm(lab, system, start)
        memory = usage.pss_mb(system.processes)

        def trial(rate: float, seconds: float = lab.trial_s) -> dict[str, Any]:
            found = shoot(system, _shot(lab, system, rate, max(seconds, min(30.0, ENOUGH / rate))))
            lab.tell("  " + _line(name, found))
            usage.settle(system.processes)
            return found

        search = Search(trial, lab.ttft_ms)
        search.run(start)
        rate, held = confirm(search, lambda rate: trial(rate, lab.long_s))
        return {
            "rate": rate,
            "best_trial": search.best,
            "held": held,
            "trials": search.trials,
            "pss_before_mb": memory,
            "pss_after_mb": usage.pss_mb(system.processes),
            "commands": system.commands(),
        }


def bar(lab: Lab, name: str, rate: float) -> dict[str, Any]:
    """A given rate for a given time, and whether it was kept up with; the shares of cores say what limits it."""
    with running(name, lab.site) as system:
        _warm(lab, system, rate / 2)
        found = shoot(system, _shot(lab, system, rate, lab.long_s))
        lab.tell(_line(name, found))
        met = sustained(found, lab.ttft_ms)
        return {"rate": rate, "met": met, **found, "commands": system.commands()}


def added_latency(lab: Lab, name: str, rate: float) -> dict[str, Any]:
    """From the end of an engine's step to the socket, at `rate`, as the gateway's own histogram has it.

    Several gateway processes each have a page of their own: `coverage` says what share of the tokens the page that answered knows.
    """
    with running(name, lab.site) as system:
        _warm(lab, system, rate)
        before = prometheus.buckets(prometheus.fetch(system.port), prometheus.ADDED)
        found = shoot(system, _shot(lab, system, rate, lab.long_s))
        after = prometheus.buckets(prometheus.fetch(system.port), prometheus.ADDED)
        added = prometheus.difference(before, after)
        lab.tell(_line(name, found))
        points = {f"p{share * 100:g}": round(1000 * prometheus.quantile(added, share), 3) for share in (0.5, 0.9, 0.99)}
        counted = max(added.values(), default=0.0)
        return {
            "rate": rate,
            "added_ms": points,
            "counted": counted,
            "coverage": counted / max(1, found["content_events"]),
            "buckets": {str(bound): count for bound, count in added.items()},
            **found,
            "commands": system.commands(),
        }


def streams(lab: Lab, name: str, engine: Sequence[str], count: int, tokens: int, ramp: float) -> dict[str, Any]:
    """So many streams at once, each one long answer to a short prompt, on an engine whose flags make it slow."""
    with running(name, replace(lab.site, engine=tuple(engine))) as system:
        memory: list[tuple[float, dict[str, float]]] = []

        def sample(line: dict[str, float]) -> None:
            if int(line["s"]) % 5 == 0:
                memory.append((line["s"], usage.pss_mb(system.processes)))

        shot = Shot(
            port=system.port,
            bearer=system.bearer,
            body=system.body(tokens, words=8),
            tokens=tokens,
            concurrency=count,
            requests=count,
            ramp=ramp,
            seconds=3600.0,
            timeout=1800.0,
            seed=lab.seed,
        )
        found = shoot(system, shot, sample)
        lab.tell(_line(name, found))
        pace = 1000 * (tokens - 1) / max(1e-9, found["e2e_ms"]["p50"] - found["ttft_ms"]["p50"])
        return {
            "streams": count,
            "at_once": found["connections"]["peak"],
            "tokens_per_s_of_a_stream": pace,
            "pss_mb": memory,
            **found,
            "commands": system.commands(),
        }


def fit(samples: Sequence[tuple[float, float]]) -> dict[str, float]:
    """A line through (requests, MB): MB per 10⁵ requests, and how far samples lie from it (standard deviation, MB)."""
    requests, memory = np.asarray(samples, float).T
    slope, base = np.polyfit(requests, memory, 1)
    off = memory - (slope * requests + base)
    return {"mb_per_100k": float(slope * 1e5), "base_mb": float(base), "deviation_mb": float(off.std())}


def slope(lab: Lab, name: str, requests: int, concurrency: int, tokens: int) -> dict[str, Any]:
    """Memory of every role, and of all together, over many requests. Fits leave out the first tenth, in which caches fill."""
    with running(name, lab.site) as system:
        _warm(lab, system, 100.0)
        pss: list[Sample] = []
        private: list[Sample] = []

        def sample(line: dict[str, float]) -> None:
            if not pss or line["ok"] - pss[-1][0] >= requests / 200:
                pss.append((line["ok"], _whole(usage.pss_mb(system.processes))))
                private.append((line["ok"], _whole(usage.private_mb(system.processes))))

        shot = Shot(
            port=system.port,
            bearer=system.bearer,
            body=system.body(tokens),
            tokens=tokens,
            concurrency=concurrency,
            requests=requests,
            seconds=36_000.0,
            timeout=60.0,
            seed=lab.seed,
        )
        found = shoot(system, shot, sample)
        lab.tell(_line(name, found))
        fits = {"pss": _fits(pss, requests / 10), "private": _fits(private, requests / 10)}
        return {
            "requests": requests,
            "fit": fits,
            "pss_mb": pss,
            "private_mb": private,
            **found,
            "commands": system.commands(),
        }


Sample = tuple[float, dict[str, float]]
"""Requests so far, and MB by role."""


def _whole(memory: dict[str, float]) -> dict[str, float]:
    return memory | {"all": round(sum(memory.values()), 2)}


def _fits(samples: Sequence[Sample], begin: float) -> dict[str, dict[str, float]]:
    """A line for every role. Raises `RuntimeError` where there are too few samples for one."""
    late = [(done, memory) for done, memory in samples if done >= begin]
    if len(late) < 3:
        raise RuntimeError("too few samples for a line: ask for more requests")
    return {role: fit([(done, memory[role]) for done, memory in late]) for role in late[0][1]}
