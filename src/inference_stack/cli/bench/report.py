"""A measurement on the terminal: progress while it runs, then a table for people and JSON for machines."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from inference_stack.cli.bench.measure import run
from inference_stack.cli.bench.spec import Load
from inference_stack.core.seams import SystemClock

LATENCIES = {
    "ttft_ms": "to first token (TTFT)",
    "tpot_ms": "per token (TPOT)",
    "itl_ms": "between chunks (ITL)",
    "e2e_ms": "end to end",
}
TOTALS = {
    "completed": "requests completed",
    "duration_s": "duration, s",
    "prompt_tokens": "prompt tokens",
    "cached_tokens": "of them cached",
    "output_tokens": "output tokens",
    "requests_per_s": "requests/s",
    "output_tokens_per_s": "output tokens/s",
    "total_tokens_per_s": "total tokens/s",
    "goodput_per_s": "within objectives, requests/s",
}


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _totals(result: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(min_width=30)
    table.add_column(justify="right")
    for name, label in TOTALS.items():
        if name in result:
            table.add_row(label, _number(result[name]))
    for kind, count in result["errors"].items():
        table.add_row(f"failed: {kind}", str(count), style="red")
    return table


def _latencies(result: dict[str, Any]) -> Table:
    table = Table("milliseconds", box=None, pad_edge=False)
    columns = ("mean", "p50", "p90", "p95", "p99", "max")
    for name in columns:
        table.add_column(name, justify="right")
    for key, label in LATENCIES.items():
        if result[key] is not None:
            table.add_row(label, *(f"{result[key][column]:,.1f}" for column in columns))
    return table


def print_report(console: Console, result: dict[str, Any]) -> None:
    """Print totals, failures and latencies."""
    console.print(_totals(result))
    console.print()
    console.print(_latencies(result))


def _progress(console: Console) -> Progress:
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, refresh_per_second=2)


def measure(load: Load) -> dict[str, Any]:
    """Run a load with a progress bar, print its table, write its JSON; the numbers. Raises `InferenceError`."""
    with _progress(Console(stderr=True)) as progress:
        task = progress.add_task("", total=load.num_requests)
        result, outcomes = run(load, SystemClock(), lambda outcome: progress.advance(task))
    print_report(Console(highlight=False), result)
    if load.output:
        detailed = {"requests": [asdict(outcome) for outcome in outcomes]} if load.details else {}
        Path(load.output).write_text(json.dumps({**result, **detailed}, indent=2) + "\n")
    return result
