"""The command line: one subcommand each, all of them with --device, --tiny, --out and --minutes."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gpu.place import Place, open_place
from bench.gpu.report import Budget, Report

MINUTES = 9.0


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit status: 0 when it did what it should, and for `check` found everything right."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    asked = parser().parse_args(given)
    place = open_place(asked.device, asked.tiny)
    run: Callable[[argparse.Namespace, Place, list[str]], int] = asked.run
    return run(asked, place, given)


def parser() -> argparse.ArgumentParser:
    """All subcommands."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    shared.add_argument("--tiny", action="store_true", help="smallest sizes; what is measured then means nothing")
    shared.add_argument("--out", type=Path, help="JSON file; by default under bench/results/gpu, with the day's date")
    shared.add_argument("--minutes", type=float, default=MINUTES, help="time limit; what no longer fits is skipped")
    kernels = argparse.ArgumentParser(add_help=False)
    kernels.add_argument("--kernels", choices=("auto", "reference", "triton"), default="auto")
    top = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    commands = top.add_subparsers(required=True)
    commands.add_parser("probe", parents=[shared], help="what the card can do").set_defaults(run=_probe)
    check = commands.add_parser("check", parents=[shared, kernels], help="is everything right")
    check.add_argument("--sections", default="", help="some of them, separated by commas")
    check.add_argument("--model", type=Path, help="a GGUF file or a directory to compare with the CPU reference")
    check.add_argument("--jobs", type=int, default=4, help="sections at a time, on a card")
    check.set_defaults(run=_check)
    section = commands.add_parser("section", parents=[shared, kernels], help="one section of check, for its process")
    section.add_argument("--name", required=True)
    section.add_argument("--model", type=Path)
    section.set_defaults(run=_section)
    weights = commands.add_parser("weights", parents=[shared], help="loading, sleep and wake")
    weights.add_argument("--layers", type=int, default=0, help="fewer layers than the shape has")
    weights.set_defaults(run=_weights)
    ops = commands.add_parser("ops", parents=[shared, kernels], help="single ops beside the limits of the same run")
    ops.add_argument("--only", default="", help="attention, linear, experts, rows: some of them, separated by commas")
    ops.set_defaults(run=_ops)
    engine = commands.add_parser(
        "engine", parents=[shared, kernels], help="random weights of real shapes, beside limits"
    )
    engine.add_argument("--models", default="", help="some of them, separated by commas")
    engine.set_defaults(run=_engine)
    model = commands.add_parser("model", parents=[shared, kernels], help="one model of engine, for its process")
    model.add_argument("--name", required=True)
    model.add_argument("--bandwidth", type=float, required=True, help="bytes a second")
    model.add_argument("--products", type=float, required=True, help="operations a second")
    model.set_defaults(run=_model)
    peer = commands.add_parser("peer", parents=[shared, kernels], help="beside other engines on the same card")
    peer.add_argument("--name", default="llama-3.1-8b", help="the shape")
    peer.set_defaults(run=_peer)
    single = commands.add_parser("peer-engine", parents=[shared, kernels], help="one engine of peer, for its process")
    single.add_argument("--engine", choices=("ours", "transformers", "vllm"), required=True)
    single.add_argument("--name", required=True)
    single.set_defaults(run=_peer_engine)
    plots = commands.add_parser("plots", parents=[shared], help="pictures of result files")
    plots.add_argument("results", nargs="+", type=Path)
    plots.set_defaults(run=_plots)
    for one in (engine, model, peer, single):
        one.add_argument(
            "--deterministic", action="store_true", help="one order of sums, as the product does by default"
        )
        one.add_argument("--kv-dtype", default="auto")
        one.add_argument("--weights", choices=("native", "float8"), default="native", help="how dense weights are kept")
    return top


def _probe(asked: argparse.Namespace, place: Place, given: list[str]) -> int:
    from bench.gpu.probe import probe

    report = Report("probe", place, given, asked.out)
    probe(place, report)
    report.close("what", "value", "unit", "spread")
    return 0


def _check(asked: argparse.Namespace, place: Place, given: list[str]) -> int:
    from bench.gpu.check import check

    report = Report("check", place, given, asked.out)
    right = check(place, report, Budget(asked.minutes), asked.sections, asked.kernels, asked.model, asked.jobs)
    report.close("section", "result", "right", "worst error / bound", "seconds")
    return 0 if right else 1


def _section(asked: argparse.Namespace, place: Place, given: list[str]) -> int:
    from bench.gpu.check import run_section

    found = run_section(place, asked.name, asked.kernels, asked.model)
    asked.out.write_text(json.dumps(found))
    return 0


def _weights(asked: argparse.Namespace, place: Place, given: list[str]) -> int:
    from bench.gpu.weights import weights

    report = Report("weights", place, given, asked.out)
    right = weights(place, report, layers=asked.layers)
    report.close("what", "value", "unit", "remark")
    return 0 if right else 1


def _ops(asked: argparse.Namespace, place: Place, given: list[str]) -> int:
    from bench.gpu.tune import bench_ops

    report = Report("ops", place, given, asked.out)
    bench_ops(place, report, Budget(asked.minutes), asked.kernels, asked.only)
    report.close("op", "µs", "limit", "of the limit", "reached", "inputs")
    return 0


def _engine(asked: argparse.Namespace, place: Place, given: list[str]) -> int:
    from bench.gpu.engine import bench_engine

    report = Report(_name("engine", asked), place, given, asked.out)
    bench_engine(place, report, Budget(asked.minutes), asked.models, asked.kernels, _options(asked))
    report.close("model", "what", "tokens/s", "limit", "of the limit", "note")
    return 0


def _name(command: str, asked: argparse.Namespace) -> str:
    """Of a result's file, telling the modes apart."""
    mode = "deterministic" if asked.deterministic else ""
    weights, kv = (value if value not in ("native", "auto") else "" for value in (asked.weights, asked.kv_dtype))
    return "-".join(part for part in (command, mode, weights, kv and f"kv-{kv}") if part)


def _settings(asked: argparse.Namespace) -> dict[str, Any]:
    """What the engine is configured with."""
    return {"deterministic": asked.deterministic, "kv_dtype": asked.kv_dtype, "weights": asked.weights}


def _options(asked: argparse.Namespace) -> list[str]:
    """The same for another process."""
    mode = ["--deterministic"] if asked.deterministic else []
    return ["--kv-dtype", asked.kv_dtype, "--weights", asked.weights, *mode]


def _model(asked: argparse.Namespace, place: Place, given: list[str]) -> int:
    from bench.gpu.engine import bench_model
    from bench.gpu.limits import Ceilings

    report = Report("model", place, given, asked.out)
    ceilings = Ceilings(bandwidth=asked.bandwidth, products=asked.products)
    bench_model(place, report, Budget(asked.minutes), asked.name, asked.kernels, ceilings, _settings(asked))
    report.write()
    return 0


def _peer(asked: argparse.Namespace, place: Place, given: list[str]) -> int:
    from bench.gpu.peer import compare

    report = Report(_name("peer", asked), place, given, asked.out)
    ours = ["--kernels", asked.kernels, *_options(asked)]
    compare(place, report, Budget(asked.minutes), asked.name, ours)
    report.close("engine", "requests × prompt + answer", "tokens/s", "ours / theirs", "note")
    return 0


def _peer_engine(asked: argparse.Namespace, place: Place, given: list[str]) -> int:
    from bench.gpu.peer import run_engine

    ours = {"kernels": asked.kernels, **_settings(asked)}
    asked.out.write_text(json.dumps(run_engine(place, asked.engine, asked.name, ours)))
    return 0


def _plots(asked: argparse.Namespace, place: Place, given: list[str]) -> int:
    from bench.gpu.plots import draw

    for path in asked.results:
        for made in draw(path, asked.out or path.parent):
            print(made)
    return 0


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda number, frame: sys.exit(128 + number)
    )  # processes of ours are ended on the way out
    sys.exit(main())
