"""How well a cost model fitted to measured steps predicts the steps of a load of another kind.

    python bench/cost_fit.py [--model smollm2] [--seconds 100] [--out bench/results]

Learns from bursts of requests; predicts chats: staggered arrivals that mix prompt chunks into decode steps, with lengths and
batch sizes of their own. No step of a chat is learnt from. Both are played in turns, so that they meet the same machine, whatever
else runs on it; every load is played several times, and a step counts with the median of its times.
Bar: median relative error of the predicted steps at most 10 %.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inference_stack.cli.bench.steps import bursts, chats, collect_kinds
from inference_stack.config.build import Given
from inference_stack.config.load import load
from inference_stack.config.tree import Config
from inference_stack.simulator.cost.fitted import Errors, FittedCost, errors_of, fit
from inference_stack.simulator.cost.samples import StepSample, merge, write_samples

BAR = 0.10


def percent(errors: Errors) -> str:
    """One line of the table."""
    return (
        f"{errors.count:5d} distinct steps: median {errors.median:6.1%}  "
        f"p90 {errors.p90:6.1%}  worst {errors.worst:6.1%}"
    )


def by_kind(cost: FittedCost, samples: list[StepSample]) -> dict[str, Errors]:
    """Errors of pure decode steps and of steps with prompt chunks, apart: a good median must not hide one of them."""
    kinds = {
        "decode": [one for one in samples if one.tokens == one.rows],
        "with prompts": [one for one in samples if one.tokens > one.rows],
    }
    return {kind: errors_of(cost, members) for kind, members in kinds.items() if members}


def measure(config: Config, seconds: float, rounds: int, seed: int, keep: Path | None) -> dict[str, Any]:
    """Collect, fit to one kind of load, predict the other."""
    learnt, seen = collect_kinds(config, (bursts, chats), seconds=seconds, rounds=rounds, seed=seed)
    cost, quality = fit(learnt)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        write_samples(keep / "bursts.jsonl", learnt)
        write_samples(keep / "chats.jsonl", seen)
    other = merge(seen)
    rows = {
        "learnt from (bursts)": quality.in_sample,
        "held out of them": quality.held_out,
        "another load (chats)": errors_of(cost, other),
    }
    rows |= {f"of it {kind}": errors for kind, errors in by_kind(cost, other).items()}
    for name, errors in rows.items():
        print(f"{name:22} {percent(errors)}")
    return {
        "samples": {"bursts": len(learnt), "chats": len(seen)},
        "rounds": rounds,
        "seed": seed,
        "coefficients": asdict(cost),
        "errors": {name: asdict(errors) for name, errors in rows.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seconds", type=float, default=100.0, help="of measuring")
    parser.add_argument("--rounds", type=int, default=5, help="how often each load is played")
    parser.add_argument("--seed", type=int, default=1, help="of the loads")
    parser.add_argument("--keep", type=Path, default=None, help="directory for the samples")
    parser.add_argument("--out", type=Path, default=None, help="directory for the JSON report")
    options = parser.parse_args()
    config = load(None, {}, [Given(("models",), [options.model], "arguments")])
    result = measure(config, options.seconds, options.rounds, options.seed, options.keep)
    held = result["errors"]["another load (chats)"]["median"] <= BAR
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    report = {
        "benchmark": "cost-fit",
        "date": date,
        "model": options.model,
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "bar": {"median": BAR, "held": held},
        **result,
    }
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"cost-fit-{date}.json").write_text(json.dumps(report, indent=2) + "\n")
    print("bar held" if held else "bar missed")
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
