"""`istack bench serve`: options in, table and JSON out."""

from __future__ import annotations

import typer

from inference_stack.cli.bench.spec import Load
from inference_stack.cli.options import with_settings
from inference_stack.config.build import Given, build

bench = typer.Typer(help="Measure a running server.", no_args_is_help=True, rich_markup_mode=None)


@bench.callback()
def _group() -> None:
    """Measure a running server."""


@bench.command()
@with_settings(Load)
def serve(settings: list[Given]) -> None:
    """Load a server and report TTFT, ITL, TPOT and throughput. Works with any OpenAI-compatible server."""
    load = build(Load, settings)
    from inference_stack.cli.bench.report import measure

    raise typer.Exit(0 if measure(load)["completed"] else 1)
