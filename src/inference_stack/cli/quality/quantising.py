"""`istack quantize`: calibrate, write the directory, then say what it cost in bytes, seconds and quality."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from inference_stack.artifacts.files import ModelFiles, Progress
from inference_stack.artifacts.resolve import resolve
from inference_stack.cli.models import fetch, progress_bar
from inference_stack.cli.quality.evaluating import print_measured
from inference_stack.cli.quality.measuring import Side, exact, measure
from inference_stack.cli.quality.texts import CALIBRATION, EVALUATION, WINDOW, bundled, windows
from inference_stack.cli.quality.tokenizer_files import write_companions, write_json
from inference_stack.config.sizes import format_size
from inference_stack.config.tree import Config
from inference_stack.core.errors import invalid
from inference_stack.core.seams import Clock
from inference_stack.engine.calibration import calibrate
from inference_stack.engine.device import CpuDevice
from inference_stack.engine.subject import Subject
from inference_stack.frontend.load import load_frontend
from inference_stack.models.export import Exported, export
from inference_stack.models.loader import read_config
from inference_stack.models.outline import outline_of
from inference_stack.models.quantise import Curvature, Target


def quantise_model(
    config: Config, model: str, wanted: Target, output: Path | None, calibrated: bool, report: bool, clock: Clock
) -> None:
    """Write `model`, quantised as `wanted`, into `output`, and print an account. Raises `InferenceError`."""
    console = Console()
    files = fetch([model], config.cache_dir)[0]
    folder = _prepared(output or Path(f"{Path(files.name).name}-{wanted.name}"))
    began = clock.now()
    with progress_bar(Console(stderr=True)) as shown:
        curvatures = _calibrated(config, files, wanted, shown) if calibrated else {}
        measured = clock.now()
        exported = export(files, wanted, folder, curvatures, shown, CpuDevice(config.node.threads).threads)
    write_companions(files, folder)
    write_json(folder / "config.json", exported.config)  # the last: a directory without it is not a model yet
    _print_summary(console, files, folder, exported, (measured - began, clock.now() - measured))
    if report:
        _report(console, config, files, folder)


def _prepared(folder: Path) -> Path:
    """A directory to write into. Raises `invalid` if something is in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise invalid(f"{folder} exists and is not empty; name another with --output.", param="output")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _calibrated(config: Config, files: ModelFiles, wanted: Target, progress: Progress) -> Mapping[str, Curvature]:
    """What the model's projections are fed when it reads the package's calibration text."""
    subject = Subject(files, config.engine, config.node.threads, WINDOW, progress)
    parts = windows(bundled(CALIBRATION), load_frontend(files).tokenizer, subject.window)
    return calibrate(subject, outline_of(read_config(files)), wanted, parts, progress)


def _print_summary(
    console: Console, files: ModelFiles, folder: Path, exported: Exported, seconds: tuple[float, float]
) -> None:
    before, after = files.total_bytes, sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if exported.dequantised:
        console.print(
            f"{files.name} was quantised already ({', '.join(exported.dequantised)}): its matrices were dequantised first, "
            "so this adds a second loss to the first."
        )
    console.print(
        f"{folder}: {exported.matrices} matrices quantised, the others in {exported.dtype}; weights {format_size(before)} "
        f"before, {format_size(after)} after ({after / before:.0%}); {seconds[0]:.1f} s to calibrate, {seconds[1]:.1f} s to "
        "quantise and write",
        highlight=False,
    )


def _report(console: Console, config: Config, files: ModelFiles, folder: Path) -> None:
    """The result as it will be served, beside what it was made of, in fp32."""
    result = Side(resolve(str(folder)), config.engine)
    with progress_bar(Console(stderr=True)) as shown:
        measured = measure(config, result, Side(files, exact(config.engine)), bundled(EVALUATION), shown)
    print_measured(console, measured, f"the package's {EVALUATION}")
