"""`istack`: one command for everything a person does with Inference Stack.

Parses arguments and hands over; each command's work lives in its own module and is imported when it runs, so that help is quick.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from inference_stack.cli.admin import drain, nodes
from inference_stack.cli.bench.command import bench
from inference_stack.cli.certs import certs
from inference_stack.cli.evaluate import evaluate
from inference_stack.cli.options import ConfigFile, with_settings
from inference_stack.cli.quantize import quantize
from inference_stack.cli.replay import replay
from inference_stack.cli.simulate import simulate
from inference_stack.config.build import Given
from inference_stack.config.load import load
from inference_stack.config.tree import Config
from inference_stack.core.errors import InferenceError

app = typer.Typer(
    help="Serve language models behind an OpenAI-compatible API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
)
app.add_typer(bench, name="bench")
app.command()(quantize)
app.command()(evaluate)
app.command()(simulate)
app.command()(replay)
app.command()(certs)

Models = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL", help="A name, a path or a Hugging Face id; NAME=MODEL says what requests call it."),
]
CacheDir = Annotated[
    str | None, typer.Option(help="Where models are kept. [default: ~/.cache/inference-stack]", show_default=False)
]


def _configure(config: Path | None, models: list[str] | None, settings: list[Given]) -> Config:
    chosen = [Given(("models",), models, "arguments")] if models else []
    return load(config, os.environ, [*settings, *chosen])


def _cache(folder: str | None) -> list[Given]:
    return [Given(("cache_dir",), folder, "--cache-dir")] if folder is not None else []


@app.command()
@with_settings()
def serve(settings: list[Given], models: Models = None, config: ConfigFile = None) -> None:
    """Serve models on an OpenAI-compatible endpoint until interrupted."""
    from inference_stack.cli.serve import serve_models

    serve_models(_configure(config, models, settings))


@app.command()
@with_settings()
def gateway(settings: list[Given], models: Models = None, config: ConfigFile = None) -> None:
    """Serve HTTP for models that run on nodes; as many gateways as you like."""
    from inference_stack.cli.gateway import serve_gateway

    serve_gateway(_configure(config, models, settings))


@app.command()
@with_settings()
def node(settings: list[Given], models: Models = None, config: ConfigFile = None) -> None:
    """Run models on this machine for gateways that dial in."""
    from inference_stack.cli.serve import serve_node

    serve_node(_configure(config, models, settings))


@app.command()
def run(
    model: Annotated[
        str,
        typer.Argument(
            help="The model to talk to. [default: smollm2, or what the server at --url has]", show_default=False
        ),
    ] = "",
    prompt: Annotated[str | None, typer.Argument(help="Answer this and exit.")] = None,
    url: Annotated[str, typer.Option(help="Use this running server instead of starting one.")] = "",
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 1024,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 is greedy.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Makes answers repeatable.", show_default=False)] = None,
    config: ConfigFile = None,
) -> None:
    """Chat with a model in the terminal."""
    from inference_stack.cli.chat import Options
    from inference_stack.cli.run import run_chat

    options = Options(model=model, system=system, max_tokens=max_tokens, temperature=temperature, seed=seed)
    raise typer.Exit(run_chat(options, prompt, url, config))


app.command()(nodes)
app.command()(drain)


@app.command()
def pull(
    names: Annotated[list[str], typer.Argument(metavar="MODEL", help="Names that `istack models` lists, or hub ids.")],
    config: ConfigFile = None,
    cache_dir: CacheDir = None,
) -> None:
    """Fetch models and verify them, without serving."""
    from inference_stack.cli.models import pull_models

    pull_models(names, _configure(config, None, _cache(cache_dir)).cache_dir)


@app.command()
def models(config: ConfigFile = None, cache_dir: CacheDir = None) -> None:
    """List the models known by name, and which are here already."""
    from inference_stack.cli.models import list_models

    list_models(_configure(config, None, _cache(cache_dir)).cache_dir)


@app.command(name="config")
@with_settings()
def show_config(settings: list[Given], models: Models = None, config: ConfigFile = None) -> None:
    """Print as YAML the settings that `istack serve` would use."""
    from inference_stack.config.load import dump
    from inference_stack.config.tree import to_plain

    print(dump(to_plain(_configure(config, models, settings))), end="")


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    print(f"istack {installed('inference-stack')}")


def run_app() -> int:
    """Run the command line; its exit status. A failure is one line, not a traceback."""
    try:
        app()
    except InferenceError as error:
        print(f"istack: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def main() -> None:
    """The entry point. Ends the process without tearing the interpreter down, which crashes now and then in msgspec's types."""
    status = run_app()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
