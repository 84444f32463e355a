"""The simulated engine behind a real server, against the simulator: the same arrivals should come to the same latencies.

    python bench/simulated_live.py [--seconds 60] [--out bench/results]

One server of this machine takes Poisson arrivals of fixed lengths; a fleet of one node takes them on virtual time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from inference_stack.cli.background import server
from inference_stack.cli.bench.arrivals import offsets
from inference_stack.cli.bench.measure import run
from inference_stack.cli.bench.spec import Load
from inference_stack.config.tree import Config, EngineConfig, NodeConfig, to_plain
from inference_stack.core.seams import SystemClock
from inference_stack.engine.simulated_startup import preset_device, preset_model
from inference_stack.scheduler.limits import SchedulerLimits
from inference_stack.simulator.api import Arrival, Segment
from inference_stack.simulator.cost.roofline import RooflineCost
from inference_stack.simulator.fleet import Fleet, FleetSpec, NodeSpec
from inference_stack.simulator.report.numbers import summarise

BAR = 0.10
"""How far a live median may be from the simulated one where steps take at least `LONG_STEP` seconds."""
LONG_STEP = 0.020
NAMES = ("ttft", "itl", "e2e")
INPUT, OUTPUT = 512, 64


@dataclass(frozen=True)
class Case:
    """A device, the model it has, and arrivals per second."""

    preset: str
    preset_model: str
    rate: float


CASES = (Case("l4", "llama-3.1-8b", 2.5), Case("h100", "qwen3-32b", 6.0))
"""Steps from 64 and from 26 ms, the device nearly always busy."""


@dataclass(frozen=True)
class Poisson:
    """The load's arrivals, for the simulator. Prompts share nothing."""

    load: Load

    def __iter__(self) -> Iterator[Arrival]:
        load = self.load
        for number, at in enumerate(offsets(load.num_requests, load.rate, load.burstiness, load.seed)):
            prompt = (Segment(number + 1, 0, load.input_len),)
            yield Arrival(number=number, at=at, prompt=prompt, output_tokens=load.output_len, seed=number)


def live(config: Config, load: Load) -> dict[str, Any]:
    """Serve and measure with the product's own client."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "simulated.yaml"
        file.write_text(yaml.safe_dump({key: to_plain(config)[key] for key in ("engine", "node")}))
        with server("smollm2", file) as url:
            numbers, _ = run(replace(load, url=url), SystemClock(), lambda outcome: None)
    return numbers


def virtual(config: Config, cost: RooflineCost, load: Load) -> dict[str, Any]:
    """The same on virtual time."""
    engine, context = config.engine, cost.architecture.context
    limits = SchedulerLimits(
        max_running=engine.max_running, max_batch_tokens=engine.max_batch_tokens, max_model_len=context
    )
    spec = FleetSpec(
        nodes=(NodeSpec(count=1, cost=cost, kv_bytes=cost.kv_bytes()),),
        groups=cost.kv_groups,
        limits=limits,
        workload=Poisson(load),
        depth=engine.pipeline_depth,
        prefix_cache=engine.prefix_cache,
    )
    return summarise(Fleet(spec).run())


def compare(measured: dict[str, Any], simulated: dict[str, Any]) -> dict[str, Any]:
    """Seconds of both, and how far the live one is off, for medians and tails."""
    rows: dict[str, Any] = {}
    for name in NAMES:
        for point in ("p50", "p95"):
            seconds = measured[f"{name}_ms"][point] / 1000
            model = simulated["latency"][name][point]
            rows[f"{name} {point}"] = {"live": seconds, "simulator": model, "error": seconds / model - 1}
    return rows


def show(rows: dict[str, Any]) -> None:
    """A line for each."""
    for name, row in rows.items():
        print(f"{name:9} live {row['live']:8.4f} s   simulator {row['simulator']:8.4f} s   {row['error']:+.1%}")


def measure(case: Case, seconds: float) -> dict[str, Any]:
    """One case, live and on virtual time."""
    node = NodeConfig(engine="simulated", preset=case.preset, preset_model=case.preset_model)
    config = Config(engine=EngineConfig(), node=node)
    device, dimensions = preset_device(case.preset), preset_model(case.preset_model)
    cost = RooflineCost(device, dimensions, kv_dtype=config.engine.kv_dtype)
    load = Load(
        concurrency=0,
        rate=case.rate,
        num_requests=round(case.rate * seconds),
        input_len=INPUT,
        output_len=OUTPUT,
        ignore_eos=True,
    )
    print(f"{case.preset_model} on {case.preset}, {load.num_requests} arrivals")
    measured, simulated = live(config, load), virtual(config, cost, load)
    rows, step = compare(measured, simulated), cost.step_seconds(1, 1, INPUT, INPUT)
    show(rows)
    sound = not measured["errors"] and measured["cached_tokens"] == 0 and step >= LONG_STEP
    return {
        **asdict(case),
        "shortest_step_seconds": step,
        "load": {name: getattr(load, name) for name in ("num_requests", "input_len", "output_len", "seed")},
        "completed": measured["completed"],
        "errors": measured["errors"],
        "device_busy": simulated.get("utilisation"),
        "held": sound and all(abs(rows[f"{name} p50"]["error"]) <= BAR for name in NAMES),
        "numbers": rows,
    }


def main() -> None:
    """Measure, simulate, compare; status 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of arrivals, in each case")
    parser.add_argument("--out", type=Path, default=None, help="directory for the JSON report")
    options = parser.parse_args()
    cases = [measure(case, options.seconds) for case in CASES]
    held = all(case["held"] for case in cases)
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    report = {
        "benchmark": "simulated-live",
        "date": date,
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "bar": {"median_error": BAR, "step_seconds": LONG_STEP, "held": held},
        "cases": cases,
    }
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"simulated-live-{date}.json").write_text(json.dumps(report, indent=2) + "\n")
    print("bar held" if held else "bar missed")
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
