"""`istack bench chaos`: break a fleet of real processes while clients check every byte of their answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from inference_stack.cli.bench.chaos_account import show
from inference_stack.cli.bench.chaos_run import run
from inference_stack.cli.bench.chaos_spec import Plan
from inference_stack.core.seams import SystemClock


def break_fleet(plan: Plan, console: Console) -> dict[str, Any]:
    """Run, print the account and, where the plan says so, write it down. Raises `InferenceError` when the fleet cannot run."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(run(plan, SystemClock(), lambda line: console.print(line, highlight=False)))
    show(result, console)
    if plan.out:
        Path(plan.out).write_text(json.dumps(result, indent=1) + "\n")
    return result
