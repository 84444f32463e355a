"""`istack quantize` as the command line sees it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from inference_stack.cli.options import ConfigFile
from inference_stack.config.load import load


def quantize(
    model: Annotated[str, typer.Argument(help="A name, a path or a Hugging Face id: whatever can be served.")],
    to: Annotated[str, typer.Option(help="Form: w4g32, w4g64, w4g128, or w8 with a scale for each row.")] = "w4g64",
    output: Annotated[
        Path | None, typer.Option(help="Directory to write. [default: named after the model]", show_default=False)
    ] = None,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="4 bits without zero points: worse, simpler.")] = False,
    calibration: Annotated[
        bool, typer.Option(help="Run the model over a text first, and round for the activations that it has.")
    ] = True,
    report: Annotated[bool, typer.Option(help="Measure the result against the source in fp32.")] = True,
    config: ConfigFile = None,
) -> None:
    """Quantise a model into a safetensors directory that other servers can load too."""
    from inference_stack.cli.quality.quantising import quantise_model
    from inference_stack.core.seams import SystemClock
    from inference_stack.models.quantise import target

    wanted = target(to, symmetric)
    quantise_model(load(config, os.environ), model, wanted, output, calibration, report, SystemClock())
