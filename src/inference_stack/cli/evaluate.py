"""`istack evaluate` as the command line sees it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from inference_stack.cli.options import ConfigFile
from inference_stack.config.build import Given
from inference_stack.config.load import load
from inference_stack.core.errors import invalid


def evaluate(
    model: Annotated[str, typer.Argument(help="A name, a path or a Hugging Face id: whatever can be served.")],
    against: Annotated[str, typer.Option(help="Compare with this model, executed alike.", show_default=False)] = "",
    float32: Annotated[
        bool, typer.Option("--float32", help="Compare with dequantised fp32 weights, fp32 KV and torch's kernels.")
    ] = False,
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text to read. [default: one in the package]", show_default=False)
    ] = None,
    max_kl: Annotated[float | None, typer.Option(help="Fail above this mean KL, in nats.", show_default=False)] = None,
    max_perplexity_increase: Annotated[
        float | None,
        typer.Option(help="Fail if perplexity exceeds the reference's by more, in percent.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    kernels: Annotated[str | None, typer.Option(help="As for `serve`.", show_default=False)] = None,
    weights: Annotated[str | None, typer.Option(help="As for `serve`.", show_default=False)] = None,
    kv_dtype: Annotated[str | None, typer.Option(help="As for `serve`.", show_default=False)] = None,
    threads: Annotated[int | None, typer.Option(help="As for `serve`.", show_default=False)] = None,
    config: ConfigFile = None,
) -> None:
    """Measure how well a model, as it is served, predicts a text; beside another model, or beside itself in fp32."""
    given = {
        ("engine", "kernels"): kernels,
        ("engine", "weights"): weights,
        ("engine", "kv_dtype"): kv_dtype,
        ("node", "threads"): threads,
    }
    settings = [
        Given(path, value, f"--{path[1].replace('_', '-')}") for path, value in given.items() if value is not None
    ]
    if (max_kl is not None or max_perplexity_increase is not None) and not (against or float32):
        raise invalid("Limits need something to compare with: --float32 or --against MODEL.")
    from inference_stack.cli.quality.evaluating import Limits, evaluate_model

    limits = Limits(divergence=max_kl, perplexity_increase=max_perplexity_increase)
    tree = load(config, os.environ, settings)
    raise typer.Exit(evaluate_model(tree, model, against, float32, text, limits, json))
