"""`istack bench`: options in, tables and JSON out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from inference_stack.cli.bench.chaos_spec import Plan
from inference_stack.cli.bench.spec import Load
from inference_stack.cli.options import ConfigFile, with_settings
from inference_stack.config.build import Given, build
from inference_stack.config.load import load
from inference_stack.config.tree import Config
from inference_stack.core.errors import invalid

bench = typer.Typer(
    help="Measure a running server, or the steps of an engine.", no_args_is_help=True, rich_markup_mode=None
)


@bench.callback()
def _group() -> None:
    """Measure a running server, or the steps of an engine."""


@bench.command()
@with_settings(Load)
def serve(settings: list[Given]) -> None:
    """Load a server and report TTFT, ITL, TPOT and throughput. Works with any OpenAI-compatible server."""
    load = build(Load, settings)
    from inference_stack.cli.bench.report import measure

    raise typer.Exit(0 if measure(load)["completed"] else 1)


@bench.command()
@with_settings()
def profile(
    settings: list[Given],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name, a path or a Hugging Face id.")] = "smollm2",
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Completions at once; repeat for several tables. [default: 1]")
    ] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    steps: Annotated[int, typer.Option(min=2, help="Decode steps to account for.")] = 200,
    output: Annotated[Path | None, typer.Option(help="Also write the numbers here, as JSON.")] = None,
    config: ConfigFile = None,
) -> None:
    """Account for every part of an engine's decode step, in this process: scheduler, inputs, each operation, sampling, IPC."""
    from inference_stack.cli.bench.profile import profile_engine

    chosen = _measurable(load(config, os.environ, [*settings, Given(("models",), [model], "arguments")]))
    profile_engine(chosen, batch or [1], context, steps, output)


@bench.command()
@with_settings()
def steps(
    settings: list[Given],
    output: Annotated[
        Path, typer.Option(help="JSONL file for the samples; `istack simulate` reads it as a cost model.")
    ],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name, a path or a Hugging Face id.")] = "smollm2",
    seconds: Annotated[float, typer.Option(min=1.0, help="How long to play loads.")] = 60.0,
    config: ConfigFile = None,
) -> None:
    """Time an engine's steps under varied loads, in this process, and say how well a cost model fits them."""
    from inference_stack.cli.bench.steps import collect_steps
    from inference_stack.simulator.cost.fitted import LEAST_SAMPLES, fit

    chosen = _measurable(load(config, os.environ, [*settings, Given(("models",), [model], "arguments")]))
    samples = collect_steps(chosen, output, seconds=seconds, least=LEAST_SAMPLES)
    _, quality = fit(samples)
    errors = quality.held_out
    said = f"{errors.median:.1%} on the others in the median, by {errors.p90:.1%} or less for nine in ten"
    print(f"{len(samples)} samples in {output}; a model fitted to four fifths of them is off by {said}")


@bench.command()
@with_settings(Plan)
def chaos(settings: list[Given]) -> None:
    """Break a fleet of real processes, again and again, while clients check every byte. Exits 1 when a promise is broken."""
    plan = build(Plan, settings)
    from rich.console import Console

    from inference_stack.cli.bench.chaos import break_fleet

    result = break_fleet(plan, Console())
    raise typer.Exit(0 if all(result["promises"].values()) else 1)


def _measurable(config: Config) -> Config:
    """Refuses to time a device that only sleeps."""
    if config.node.simulated:
        raise invalid("a simulated engine has nothing to measure: its times are the preset's", param="node.engine")
    return config
