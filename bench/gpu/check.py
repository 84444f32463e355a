"""`python -m bench.gpu check`: is everything right on this card? Every op, whole models, the engine.

Sections run in processes of their own, several at a time: a fault of the card spoils the process it happens in, not the others'
findings. What a section found is on disk when it ends.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench.gpu.bound import Bench, Kernels
from bench.gpu.check_attention import check_attention
from bench.gpu.check_engine import check_engine
from bench.gpu.check_invariance import check_invariance
from bench.gpu.check_linear import check_experts, check_linear
from bench.gpu.check_models import check_demo, check_models
from bench.gpu.check_rows import check_rope, check_rows
from bench.gpu.check_sampler import check_sampler
from bench.gpu.findings import Findings
from bench.gpu.place import Place, apart
from bench.gpu.report import Budget, Report

Check = Callable[[Bench, Findings], None]
SECTIONS: dict[str, Check] = {
    "rows": check_rows,
    "rope": check_rope,
    "attention": check_attention,
    "linear": check_linear,
    "experts": check_experts,
    "sampler": check_sampler,
    "invariance": check_invariance,
    "models": check_models,
    "engine": check_engine,
}
HALF = ("rows", "rope", "attention", "linear", "experts")
"""Sections that are repeated with fp16 activations."""
SHOWN = 60
"""Failures in the table; the file has all of them."""


def run_section(place: Place, name: str, kernels: Kernels, model: Path | None) -> list[dict[str, Any]]:
    """One section's findings, in this process. A name may end in ":fp16"."""
    title, _, half = name.partition(":")
    bench, found = Bench(place, kernels, torch.float16 if half else None), Findings()
    work: Check = partial(_demo, model=model) if title == "demo" else SECTIONS[title]
    with found.guard(f"section {name}"):
        explained = bench.ops().explain()
        work(bench, found)
        place.wait()
        found.say("kernels", True, "; ".join(sorted(set(explained.values()))))
    return [one.plain() for one in found.all]


def _demo(bench: Bench, found: Findings, model: Path | None) -> None:
    if model is None:
        raise ValueError("the section demo needs --model")
    check_demo(bench, found, model)


def wanted(place: Place, asked: str, model: Path | None) -> list[str]:
    """The sections to run: those asked for, or all. Raises `SystemExit` for one that does not exist."""
    names = asked.split(",") if asked else [*SECTIONS, *(f"{name}:fp16" for name in HALF if place.on_card)]
    if unknown := [name for name in names if name.partition(":")[0] not in (*SECTIONS, "demo")]:
        raise SystemExit(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)} and demo")
    return names + (["demo"] if model is not None and "demo" not in names else [])


def check(
    place: Place, report: Report, budget: Budget, asked: str, kernels: Kernels, model: Path | None, jobs: int
) -> bool:
    """Run sections; whether everything is right. On a card each gets a process, `jobs` of them at a time."""
    names = wanted(place, asked, model)
    results: dict[str, Any] = {}

    def keep(name: str, found: list[dict[str, Any]], seconds: float) -> None:
        results[name] = {"seconds": seconds, "findings": found}
        report.put("sections", results)
        bad = [one for one in found if not one["ok"]]
        worst = max(
            (one["error"] / one["bound"] for one in found if one["error"] == one["error"] and one["bound"]), default=0.0
        )
        report.row(
            name, "FAILED" if bad or not found else "ok", f"{len(found) - len(bad)} of {len(found)}", worst, seconds
        )

    stopped = threading.Event()
    with ThreadPoolExecutor(jobs if place.on_card else 1) as pool, tempfile.TemporaryDirectory() as folder:
        run = (
            partial(_apart, place, Path(folder), budget, kernels, model, stopped)
            if place.on_card
            else _here(place, kernels, model)
        )
        try:
            for name, job in [(name, pool.submit(run, name)) for name in names]:
                keep(name, *job.result())
        except BaseException:  # an interrupt reaches this process alone: the sections' have sessions of their own
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return _tell(report, results)


def _here(place: Place, kernels: Kernels, model: Path | None) -> Callable[[str], tuple[list[dict[str, Any]], float]]:
    def run(name: str) -> tuple[list[dict[str, Any]], float]:
        began = time.monotonic()
        return run_section(place, name, kernels, model), time.monotonic() - began

    return run


def _apart(
    place: Place,
    folder: Path,
    budget: Budget,
    kernels: Kernels,
    model: Path | None,
    stopped: threading.Event,
    name: str,
) -> tuple[list[dict[str, Any]], float]:
    """A section in its own process. When that ends without findings, this is the finding."""
    out, began = folder / f"{name.replace(':', '-')}.json", time.monotonic()
    arguments = ["section", "--device", str(place.device), "--name", name, "--kernels", kernels, "--out", str(out)]
    arguments += (["--tiny"] if place.tiny else []) + (["--model", str(model)] if model else [])
    status = apart(arguments, budget.left, lambda line: print(line, flush=True), stopped.is_set)
    seconds = time.monotonic() - began
    if out.is_file():
        return json.loads(out.read_text()), seconds
    why = "no time was left" if status == 124 else f"the process ended with status {status}; its output says why"
    return [{"name": name, "ok": False, "error": None, "bound": None, "note": why}], seconds


def _tell(report: Report, results: dict[str, Any]) -> bool:
    """Failures, first ones first; what they are by name."""
    bad = [(name, one) for name, section in results.items() for one in section["findings"] if not one["ok"]]
    for name, one in bad[:SHOWN]:
        size = "" if one["error"] is None else f" {one['error']:.2e} (bound {one['bound']:.0e})"
        print(f"FAILED {name}: {one['name']}{size} {one['note']}", flush=True)
    if len(bad) > SHOWN:
        print(f"… and {len(bad) - SHOWN} more")
    report.put("failed", len(bad))
    report.put("checked", sum(len(section["findings"]) for section in results.values()))
    return not bad
