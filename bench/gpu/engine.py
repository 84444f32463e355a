"""`python -m bench.gpu engine`: the engine with random weights of real shapes, each number beside its limit of the same run.

    probe ─▶ ceilings ─▶ one process a model: start, decode, prompts, mixed, online, sleep ─▶ one file, one table

Random weights take as long as trained ones, except where experts are chosen: random routers spread tokens evenly.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench.gpu.bound import Kernels
from bench.gpu.house import open_house, write_config
from bench.gpu.limits import Ceilings, Limits, form_of
from bench.gpu.place import Place, apart
from bench.gpu.probe import probe
from bench.gpu.report import Budget, Report
from bench.gpu.serving import Serving
from bench.gpu.shapes import MEASURED, measured

from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.models.config import config_from_hf

LEAST_SECONDS = 60.0
"""For a model to be started at all."""
ON_CARD = {"max_running": 256, "max_model_len": 34_000}
TINY = {"max_running": 8, "max_model_len": 256, "kv_memory": "16MiB", "max_batch_tokens": 64}


def bench_engine(
    place: Place, report: Report, budget: Budget, asked: str, kernels: Kernels, options: list[str]
) -> None:
    """Measure models, in the order they are named, for as long as there is time."""
    names = (
        asked.split(",") if asked else [one.name for one in MEASURED if not place.tiny or one.name != "smollm2-135m"]
    )
    for name in names:
        measured(name)
    ceilings = probe(place, report, quick=True)
    if place.on_card:
        torch.cuda.empty_cache()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            if not budget.fits(report, name, 0.0 if place.tiny else LEAST_SECONDS):
                continue
            seconds = (budget.left - 10) / (1.6 if number + 1 < len(names) else 1)  # the rest is for the others
            out = Path(folder) / f"{name}.json"
            _model_apart(place, name, out, ceilings, seconds / 60, [*options, "--kernels", kernels])
            found[name] = (
                json.loads(out.read_text()) if out.is_file() else {"error": "the process died; its output says why"}
            )
            report.put("models", found)
    _summary(report, found)


def _model_apart(place: Place, name: str, out: Path, ceilings: Ceilings, minutes: float, options: list[str]) -> None:
    """A card's memory is given back by the end of a process, and by nothing else for certain."""
    arguments = [
        "model",
        "--name",
        name,
        "--device",
        str(place.device),
        "--out",
        str(out),
        "--minutes",
        f"{minutes:.2f}",
    ]
    arguments += ["--bandwidth", str(ceilings.bandwidth), "--products", str(ceilings.products), *options]
    if not place.on_card:
        from bench.gpu.__main__ import main

        main([*arguments, *(["--tiny"] if place.tiny else [])])
        return
    apart([*arguments, *(["--tiny"] if place.tiny else [])], 60 * minutes + 20, lambda line: print(line, flush=True))


def bench_model(
    place: Place,
    report: Report,
    budget: Budget,
    name: str,
    kernels: Kernels,
    ceilings: Ceilings,
    settings: dict[str, Any],
) -> None:
    """One model, in this process."""
    one = measured(name)
    raw = one.raw(place.tiny)
    quantise = "w4g32" if one.quantise and place.tiny else one.quantise
    with tempfile.TemporaryDirectory() as folder:
        path = write_config(raw, Path(folder) / name)
        began = time.perf_counter()
        house = open_house(place, path, kernels, quantise, **((TINY if place.tiny else ON_CARD) | settings))
        seconds = time.perf_counter() - began
    spec = house.ready.models[0].kv_groups[0]
    kv_bytes = spec.unit_bytes / (2 * BLOCK_TOKENS * spec.kv_heads * spec.head_dim)
    form = quantise or ("float8" if settings.get("weights") == "float8" else None)
    limits = Limits(config_from_hf(raw), form_of(form, kv_bytes), ceilings)
    ledger = asdict(house.ready.ledger)
    weights = dict(house.ready.ledger.stages).get("weights", 0.0)
    report.put(
        "start", {"seconds": seconds, "beside_weights": seconds - weights, "ledger": ledger, "settings": settings}
    )
    report.row(f"{name}: start", seconds, "", "", f"{seconds - weights:.1f} s of it beside drawing weights")
    Serving(place, house, limits, budget, report).all()


def _summary(report: Report, found: dict[str, Any]) -> None:
    """The table of all models."""
    report.rows.clear()
    for name, one in found.items():
        for what, result in one.get("measured", {}).items():
            values = [result.get(key, "") for key in ("tokens_per_s", "limit", "ratio")]
            report.rows.append([name, what, *(f"{value:,.3g}" if isinstance(value, float) else "" for value in values)])
            report.rows[-1].append(str(result.get("note") or result.get("error") or ""))
        if "measured" not in one:
            report.rows.append([name, "start", "", "", "", str(one.get("error", "nothing was measured"))])
