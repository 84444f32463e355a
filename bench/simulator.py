"""How fast the simulator is: a recorded trace on a fleet of presets, on one core.

    python bench/simulator.py TRACE [--nodes 16] [--scale 1] [--limit N] [--out FILE]

TRACE is Azure's LLM inference trace of 2023 (conversation or code), as published. Bar: its hour on 16 nodes in at most 120 s.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inference_stack.simulator.fleet import Fleet
from inference_stack.simulator.plain import fleet_from
from inference_stack.simulator.report.numbers import summarise


def measure(trace: Path, nodes: int, scale: float, limit: int | None) -> dict[str, Any]:
    """One run, with its speed and its largest memory."""
    workload = {"kind": "azure", "path": str(trace.resolve()), "scale": scale} | ({"limit": limit} if limit else {})
    spec = fleet_from(
        {
            "nodes": {"count": nodes, "cost": {"hardware": "h100", "model": "llama-3.1-8b"}},
            "engine": {"max_running": 256, "max_batch_tokens": 2048},
            "workload": workload,
            "interval": 60,
        }
    )
    fleet = Fleet(spec)
    gc.freeze()
    began, cpu = time.perf_counter(), time.process_time()
    run = fleet.run()
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    summary = summarise(run)
    return {
        "trace": trace.name,
        "nodes": nodes,
        "scale": scale,
        "requests": len(run.outcomes),
        "simulated_seconds": round(run.seconds, 1),
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "steps": run.steps,
        "events": fleet.loop.events,
        "microseconds_per_event": round(1e6 * cpu / fleet.loop.events, 1),
        "microseconds_per_step": round(1e6 * cpu / run.steps, 1),
        "largest_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "ttft_p95": summary["latency"]["ttft"]["p95"],
        "itl_p95": summary["latency"]["itl"]["p95"],
        "goodput_share": summary["goodput"]["share"],
    }


def main() -> None:
    """Measure, print, and write when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found = measure(asked.trace, asked.nodes, asked.scale, asked.limit)
    found |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "load_average": os.getloadavg()}
    print(json.dumps(found, indent=1))
    if asked.out is not None:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
