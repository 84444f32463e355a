"""The two figures of a comparison, drawn with matplotlib and no display. Knows how to draw and nothing of what is good."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot


def ratios(
    result: Mapping[str, Any], found: Mapping[str, Mapping[str, float]], labels: Mapping[str, str], to: Path
) -> None:
    """Grouped bars: for each metric, how many times as fast ours is as each peer, on a logarithmic axis."""
    figure, axes = pyplot.subplots(figsize=(10, 4.5), layout="constrained")
    width = 0.8 / len(found)
    for place, (name, values) in enumerate(found.items()):
        at = [index + (place - (len(found) - 1) / 2) * width for index in range(len(labels))]
        heights = [values.get(metric, 1.0) for metric in labels]
        bars = axes.bar(at, [height - 1 for height in heights], width, bottom=1, label=result["servers"][name]["title"])
        axes.bar_label(bars, [f"{height:.1f}" for height in heights], fontsize=6, padding=1)
    axes.set_yscale("log")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(labels)), [label.replace(", ", ",\n") for label in labels.values()], fontsize=8)
    axes.set_ylabel("ours is so many times better")
    axes.legend(fontsize=7)
    figure.savefig(to, dpi=130)
    pyplot.close(figure)


def amounts(result: Mapping[str, Any], labels: Mapping[str, str], to: Path) -> None:
    """One panel for each metric, one bar for each server: its median, with whiskers from lower to upper quartile."""
    servers = {name: server for name, server in result["servers"].items() if server["summary"]}
    names = list(reversed(servers))
    figure, grid = pyplot.subplots(2, 3, figsize=(11, 1.6 + 0.55 * len(names)), sharey=True, layout="constrained")
    for axes, (metric, label) in zip(grid.flat, labels.items(), strict=True):
        found = [servers[name]["summary"][metric] for name in names]
        middle = [value["median"] for value in found]
        spread = [
            [value["median"] - value["lower_quartile"] for value in found],
            [value["upper_quartile"] - value["median"] for value in found],
        ]
        colours = ["tab:orange" if name == "ours" else "tab:blue" for name in names]
        axes.barh(range(len(names)), middle, xerr=spread, color=colours, error_kw={"linewidth": 0.8})
        axes.set_yticks(range(len(names)), [servers[name]["title"] for name in names], fontsize=7)
        axes.set_title(label, fontsize=9)
    figure.savefig(to, dpi=130)
    pyplot.close(figure)
