"""`python -m bench.gpu plots`: the ratios of result files as pictures. Draws with matplotlib, and knows nothing of what is good."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Bar = tuple[str, float]


def bars_of(result: Mapping[str, Any]) -> dict[str, list[Bar]]:
    """(title, ratio) pairs by figure: of models to their limits, of ops to theirs, of ours to peers."""
    found: dict[str, list[Bar]] = {}
    for model, one in result.get("models", {}).items():
        found[model] = [(what, value["ratio"]) for what, value in one.get("measured", {}).items() if "ratio" in value]
    found["ops"] = [
        (f"{what}, cached" if value.get("cached") else what, value["ratio"])
        for what, value in result.get("ops", {}).items()
        if "ratio" in value
    ]
    for peer, ratios in result.get("ratios", {}).items():
        found[f"beside {peer}"] = list(ratios.items())
    return {title: bars for title, bars in found.items() if bars}


def draw(path: Path, folder: Path) -> list[Path]:
    """One PNG for each figure of a result file, beside it or in `folder`. Raises `SystemExit` without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit(f"plots need matplotlib: {error}") from error
    matplotlib.use("Agg")
    result = json.loads(path.read_text())
    made = []
    for title, bars in bars_of(result).items():
        to = folder / f"{path.stem}-{title.replace(' ', '-')}.png"
        _figure(title, bars, str(result["machine"]["card"]), str(result["machine"]["date"]), to)
        made.append(to)
    return made


def _figure(title: str, bars: Sequence[Bar], card: str, date: str, to: Path) -> None:
    from matplotlib import pyplot

    beside = title.startswith("beside ")
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.32 * len(bars)), layout="constrained")
    names, values = [name for name, _ in reversed(bars)], [value for _, value in reversed(bars)]
    drawn = axes.barh(range(len(bars)), values, color="tab:orange" if beside else "tab:blue")
    axes.bar_label(drawn, [f"{value:.2f}×" if beside else f"{value:.0%}" for value in values], fontsize=7, padding=2)
    axes.set_yticks(range(len(bars)), names, fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("ours is so many times as fast" if beside else "of the limit measured in the same run")
    axes.set_title(f"{title}: {card}, {date[:10]}", fontsize=9)
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=130)
    pyplot.close(figure)
