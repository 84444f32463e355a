"""`python -m bench.gateway`: install the proxies, measure, write one JSON file."""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from bench.gateway import measure
from bench.gateway.measure import Lab
from bench.gateway.systems import CAPACITY, DEFAULT, SYSTEMS, TOKENS, Site, find, packages
from bench.peers import environments, machine
from bench.peers.__main__ import RESULTS, anonymous, tell

from inference_stack.artifacts.catalogue import default_cache_dir

FAILURES = (RuntimeError, OSError, ValueError)
"""What a system may do to a run without ending it."""

SLOW = ("--preset", "cpu", "--preset-model", "smollm2-135m", "--max-running", "350", "--max-batch-tokens", "384")
"""A step of 350 rows takes half a second: six such nodes pace 2,000 streams at two tokens a second each, once all have begun."""

KV_MEMORY = "1GiB"
"""So little that the prefix cache is full, and its index as large as it gets, after a few hundred requests."""

ENVIRONMENTS = tuple(system.environment for system in SYSTEMS.values() if system.environment)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description=__doc__)
    parser.add_argument("--home", type=Path, default=default_cache_dir() / "peers", help="the peers' environments")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / f"gateway-{date.today()}.json", help="updated, not replaced"
    )
    parser.add_argument("--seed", type=int, default=int(date.today().strftime("%Y%m%d")))
    parser.add_argument("--engine", default=" ".join(CAPACITY), help="flags of our simulated engine")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a long trial")
    parser.add_argument("--ttft-ms", type=float, default=1000.0, help="bound of p99 TTFT in a rate that counts")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install", help="the proxies, each in an environment of its own")
    run = commands.add_parser("run", help="sustained rates in interleaved rounds")
    run.add_argument("--only", default=",".join(DEFAULT), help=f"of {', '.join(SYSTEMS)}; apart and pumps take -N")
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument("--trial-seconds", type=float, default=6.0)
    _add_single(commands)
    return parser.parse_args()


def _add_single(commands: Any) -> None:
    for name, text in (
        ("bar", "one rate for a while: is it kept up with, and what is the limit?"),
        ("latency", "added latency at a share of the sustained rate"),
        ("streams", "many slow streams at once"),
        ("slope", "memory over many requests"),
    ):
        one = commands.add_parser(name, help=text)
        one.add_argument("--system", default="apart-2x6" if name == "streams" else "apart-2")
        if name in ("bar", "latency"):
            one.add_argument("--rate", type=float, default=500.0 if name == "bar" else 0.0, help="requests per second")
        if name == "latency":
            one.add_argument("--share", type=float, default=0.6, help="of the sustained rate in --out, without --rate")
        if name == "streams":
            one.add_argument("--slow-engine", default=" ".join(SLOW), help="flags of the engine that paces them")
        if name in ("streams", "slope"):
            one.add_argument("--count", type=int, default=2000 if name == "streams" else 300_000)
            one.add_argument("--tokens", type=int, default=400 if name == "streams" else TOKENS)
        if name == "streams":
            one.add_argument("--ramp", type=float, default=20.0, help="seconds over which the streams begin")
        if name == "slope":
            one.add_argument("--concurrency", type=int, default=64)
            one.add_argument(
                "--kv-memory", default=KV_MEMORY, help="of the engine: what fills up is full before memory is compared"
            )


Save = Callable[[str, Any], None]


def saver(out: Path, arguments: list[str]) -> Save:
    """Puts a section into the result file, which keeps its others."""

    def save(section: str, value: Any) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        whole = json.loads(out.read_text()) if out.exists() else {}
        whole[section] = {"machine": machine.describe(), "arguments": arguments, **value}
        out.write_text(anonymous(json.dumps(whole, indent=1)) + "\n")

    return save


def rounds(lab: Lab, names: list[str], count: int, save: Save) -> int:
    """Every system alone, in an order of its own in each round; medians over rounds. The number of systems that failed."""
    found: dict[str, dict[str, Any]] = {name: {"rounds": [], "errors": []} for name in names}
    for number in range(count):
        order = random.Random(lab.seed + number).sample(names, len(names))
        for name in order:
            row = found[name]
            try:
                known = [one["rate"] for one in row["rounds"] if one["rate"]]
                row["rounds"].append(measure.sustained_rate(lab, name, 0.9 * known[-1] if known else 0.0))
                row["versions"] = packages(name, lab.site)
            except FAILURES as error:
                row["errors"].append(f"{type(error).__name__}: {error}")
            last = row["errors"][-1] if row["errors"] else f"{row['rounds'][-1]['rate']:.0f}/s"
            lab.tell(f"round {number + 1}/{count} {name}: {last}")
            save("run", {"systems": found, **summary(found)})
    return sum(bool(row["errors"]) for row in found.values())


def processes(name: str) -> int:
    """Processes of a system that share its port."""
    return int(find(name)[1].partition("x")[0] or 1)


def summary(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Median rates, also per gateway (or pump, or proxy) process, and ratios of ours to the others."""
    rates, per_process = {}, {}
    for name, row in found.items():
        if row["rounds"]:
            rates[name] = statistics.median(one["rate"] for one in row["rounds"])
            per_process[name] = rates[name] / processes(name)
    ours = [name for name in rates if name.startswith(("serve", "apart"))]
    ratios = {
        one: {
            other: {"whole": rates[one] / rates[other], "per_process": per_process[one] / per_process[other]}
            for other in rates
            if other not in ours and rates[other]
        }
        for one in ours
    }
    return {"sustained_per_s": rates, "sustained_per_s_and_process": per_process, "ratios": ratios}


def asked_rate(asked: argparse.Namespace) -> float:
    """The rate for added latency. Raises `ValueError` if neither the command nor an earlier run tells it."""
    if asked.rate:
        return float(asked.rate)
    whole = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    rate = whole.get("run", {}).get("sustained_per_s", {}).get(asked.system)
    if not rate:
        raise ValueError(f"no sustained rate of {asked.system} in {asked.out}: run it first, or give --rate")
    return float(asked.share * rate)


def single(lab: Lab, asked: argparse.Namespace) -> dict[str, Any]:
    """One measurement of one system."""
    match asked.command:
        case "bar":
            return measure.bar(lab, asked.system, asked.rate)
        case "latency":
            return measure.added_latency(lab, asked.system, asked_rate(asked))
        case "streams":
            slow = asked.slow_engine.split()
            return measure.streams(lab, asked.system, slow, asked.count, asked.tokens, asked.ramp)
    site = replace(lab.site, engine=(*lab.site.engine, "--kv-memory", asked.kv_memory))
    return measure.slope(replace(lab, site=site), asked.system, asked.count, asked.concurrency, asked.tokens)


def install(home: Path) -> int:
    """Make the proxies' environments; the number that failed."""
    failures = 0
    for name in ENVIRONMENTS:
        try:
            environments.install(home, name)
        except FAILURES as error:
            tell(f"{name}: {error}")
            failures += 1
    return failures


def main() -> int:
    """Do what was asked. The exit status is 1 if anything failed. Being terminated stops the servers too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    asked = arguments()
    if asked.command == "install":
        return int(install(asked.home) > 0)
    site = Site(home=asked.home, logs=asked.home / "logs", engine=tuple(asked.engine.split()))
    trial_s = getattr(asked, "trial_seconds", asked.seconds)
    lab = Lab(site=site, tell=tell, seed=asked.seed, trial_s=trial_s, long_s=asked.seconds, ttft_ms=asked.ttft_ms)
    save = saver(asked.out, sys.argv[1:])
    if asked.command == "run":
        return int(rounds(lab, asked.only.split(","), asked.rounds, save) > 0)
    try:
        save(f"{asked.command} {asked.system}", {"system": asked.system, **single(lab, asked)})
    except FAILURES as error:
        tell(f"{asked.system}: {type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
