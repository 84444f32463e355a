"""`istack evaluate`: measure, print, and say whether limits were kept."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from inference_stack.cli.models import fetch, progress_bar
from inference_stack.cli.quality.measuring import Measured, Side, measure
from inference_stack.cli.quality.texts import EVALUATION, read_text
from inference_stack.config.tree import Config
from inference_stack.engine.subject import FLOAT32


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a comparison may show at most. `perplexity_increase` is in percent; None: anything."""

    divergence: float | None = None
    perplexity_increase: float | None = None

    def broken_by(self, measured: Measured) -> list[str]:
        """What exceeds a limit, in words. A number that is not one exceeds every limit."""
        quality = measured.quality
        found: list[str] = []
        if quality is None:
            return found
        increase = quality.increase * 100
        if self.divergence is not None and not quality.divergence <= self.divergence:
            found.append(f"mean KL {quality.divergence:.4f} nats exceeds {self.divergence:g}")
        if self.perplexity_increase is not None and not increase <= self.perplexity_increase:
            found.append(f"perplexity rose by {increase:.2f} %, more than {self.perplexity_increase:g} %")
        return found


def evaluate_model(
    config: Config, model: str, against: str, float32: bool, text: Path | None, limits: Limits, as_json: bool
) -> int:
    """Print how well `model` predicts a text as it is served, beside another model or itself in fp32; the exit status."""
    words = read_text(text)
    files = fetch([model, against] if against else [model], config.cache_dir)
    reference = Side(files[-1], FLOAT32 if float32 else config.engine) if against or float32 else None
    with progress_bar(Console(stderr=True)) as report:
        measured = measure(config, Side(files[0], config.engine), reference, words, report)
    if as_json:
        print(json.dumps(plain(measured) | {"text": str(text or EVALUATION)}, indent=2))
    else:
        print_measured(Console(), measured, str(text or f"the package's {EVALUATION}"))
    broken = limits.broken_by(measured)
    for complaint in broken:
        print(f"istack: {complaint}", file=sys.stderr)
    return int(bool(broken))


def plain(measured: Measured) -> dict[str, Any]:
    """A measurement as JSON's types."""
    found = {"model": measured.model, "window": measured.window, "perplexity": measured.perplexity}
    if measured.quality is None:
        return found
    return found | {"reference": measured.reference, "quality": asdict(measured.quality)}


def print_measured(console: Console, measured: Measured, text: str) -> None:
    """A measurement as a table."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("model", measured.model)
    if measured.quality is None:
        table.add_row("text", f"{text}, in windows of {measured.window} tokens")
        table.add_row("perplexity", f"{measured.perplexity:.3f}")
        console.print(table)
        return
    quality = measured.quality
    table.add_row("reference", measured.reference)
    table.add_row("text", f"{text}: {quality.positions} predicted tokens in windows of {measured.window}")
    change = f"{quality.increase:+.2%} against {quality.reference:.3f}"
    table.add_row("perplexity", f"{quality.perplexity:.3f}, {change}")
    table.add_row("mean KL", f"{quality.divergence:.5f} nats a token, at most {quality.worst:.3f}")
    table.add_row("top-1 agreement", f"{quality.agreement:.2%}")
    console.print(table)
