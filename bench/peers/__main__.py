"""`python -m bench.peers`: install peers, run the comparison, write its report."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from datetime import date
from pathlib import Path
from typing import Any

from bench.peers import environments, weights
from bench.peers.catalogue import DEFAULT, PEERS
from bench.peers.run import Plan, run
from bench.peers.servers import Site

from inference_stack.artifacts.catalogue import default_cache_dir
from inference_stack.artifacts.resolve import resolve

RESULTS = Path(__file__).parents[1] / "results"
DOCS = Path(__file__).parents[2] / "docs"


def tell(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument(
        "--home", type=Path, default=default_cache_dir() / "peers", help="environments and converted models"
    )
    parser.add_argument("--model", default="smollm2", help="a known name or a GGUF file")
    commands = parser.add_subparsers(dest="command", required=True)
    install = commands.add_parser("install", help="one environment for each peer, and the model in its form")
    install.add_argument("peers", nargs="*", default=list(DEFAULT), metavar="PEER", help=", ".join(PEERS))
    measure = commands.add_parser("run", help="measure ours and theirs")
    measure.add_argument("--peers", default=",".join(DEFAULT), help="comma-separated; empty for ours alone")
    measure.add_argument("--without-ours", action="store_true", help="peers only")
    measure.add_argument("--repeats", type=int)
    measure.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    measure.add_argument("--seed", type=int, default=int(date.today().strftime("%Y%m%d")))
    measure.add_argument(
        "--quick", action="store_true", help="one repetition of shorter answers: does everything work?"
    )
    measure.add_argument("--out", type=Path, default=RESULTS / f"peers-{date.today()}.json")
    report = commands.add_parser("report", help="tables and plots from a result")
    report.add_argument("file", type=Path)
    report.add_argument("--docs", type=Path, default=DOCS, help="folder with benchmarks.md")
    return parser.parse_args()


def anonymous(text: str) -> str:
    """The text without the places of this machine."""
    places = {sys.prefix: "VENV", str(Path(__file__).parents[2]): ".", str(Path.home()): "~"}
    for place, name in places.items():
        text = text.replace(place, name)
    return text


def do_install(asked: argparse.Namespace, source: Path) -> int:
    """Install, telling of every failure; the number of failures."""
    failures = 0
    for name in asked.peers:
        try:
            for environment in PEERS[name].environments:
                environments.install(asked.home, environment)
            tell(f"{name}: {weights.form(PEERS[name].form, asked.home, source)}")
        except (RuntimeError, OSError) as error:
            tell(f"{name}: {error}")
            failures += 1
    return failures


def do_run(asked: argparse.Namespace, source: Path) -> int:
    """Measure and write the result; the number of contenders that failed."""
    names = [*([] if asked.without_ours else ["ours"]), *filter(None, asked.peers.split(","))]
    site = Site(asked.home, asked.threads, asked.home / "logs")
    plan = Plan(names=names, repeats=asked.repeats or (1 if asked.quick else 5), quick=asked.quick, seed=asked.seed)
    asked.out.parent.mkdir(parents=True, exist_ok=True)

    def save(result: dict[str, Any]) -> None:
        asked.out.write_text(anonymous(json.dumps(result, indent=1)) + "\n")
        tell(f"written: {asked.out}")

    result = run(plan, site, source, tell, save)
    return sum(bool(server["error"]) for server in result["servers"].values())


def main() -> int:
    """Do what was asked. The exit status is 1 if anything failed. Being terminated stops the servers too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    asked = arguments()
    if asked.command == "report":
        from bench.peers.report import write

        write(json.loads(asked.file.read_text()), asked.docs)
        return 0
    source = resolve(asked.model).weights[0]
    return int((do_install if asked.command == "install" else do_run)(asked, source) > 0)


if __name__ == "__main__":
    sys.exit(main())
