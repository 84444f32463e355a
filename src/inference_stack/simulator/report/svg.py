"""Charts as SVG text: lines over time with marks, distributions on a log axis, bars.

Colours are classes; `STYLE` gives them for light, dark and paper. Knows numbers and names (which it escapes), not what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import numpy as np

from inference_stack.simulator.api import FloatArray
from inference_stack.simulator.report import axes

WIDTH, HEIGHT = 640, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 26, 10, 38
POINTS = 320
SERIES_COLOURS = {
    "light": ("#0b62a4", "#b8480a", "#0a7d5c", "#8e3a8c", "#8a6100", "#5b6470"),
    "dark": ("#6cb6f5", "#f0883e", "#3fc79a", "#dd8fdb", "#d9ac3a", "#a3adb8"),
}
BACKGROUND = {"light": "#ffffff", "dark": "#14181d"}
# A line is also told by its dashes, for eyes and printers that see no colour.
_DASHES = ("", "8 5", "1 5", "10 5 1 5", "14 6", "5 5")


def _palette(theme: str) -> str:
    return "".join(f"--s{index}:{colour};" for index, colour in enumerate(SERIES_COLOURS[theme]))


STYLE = (
    f":root{{{_palette('light')}}}"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_palette('dark')}}}}}"
    "svg.chart{width:100%;height:auto;display:block;font:11px system-ui,sans-serif}"
    ".chart text{fill:var(--soft)}.chart .grid{stroke:var(--rule);stroke-width:1}"
    ".chart .mark{stroke:var(--mark);stroke-opacity:.28;stroke-width:2}"
    ".line{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}"
    ".band{stroke:none;fill-opacity:.18}"
    + "".join(
        f".line.c{index}{{stroke:var(--s{index});stroke-dasharray:{dashes or 'none'}}}.fill.c{index}{{fill:var(--s{index})}}"
        for index, dashes in enumerate(_DASHES)
    )
)


class Line(NamedTuple):
    """One named line of a chart over time."""

    name: str
    values: FloatArray


class Curve(NamedTuple):
    """A distribution: `shares` [N] (0 to 1, rising) of all values are at most `values` [N] seconds (rising)."""

    name: str
    values: FloatArray
    shares: FloatArray


@dataclass(frozen=True)
class _Scale:
    """From values to pixels along one axis."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    def all(self, values: FloatArray) -> FloatArray:
        return self.begin + (values - self.low) / (self.high - self.low) * (self.end - self.begin)


def time_chart(
    title: str,
    times: FloatArray,
    lines: Sequence[Line],
    *,
    seconds: float,
    marks: Iterable[tuple[float, str]] = (),
    top: float | None = None,
    whole: bool = False,
) -> str:
    """Lines over a run of `seconds`, point i at `times[i]`, with a vertical mark for each event in `marks`.

    More points than the chart has room for are drawn as their mean within a band from lowest to highest. `top` fixes the
    vertical axis; `whole` keeps it to whole numbers.
    """
    ticks = axes.nice_ticks(top or max((float(line.values.max(initial=0)) for line in lines), default=0.0), whole=whole)
    across = _Scale(0.0, max(seconds, 1e-9), LEFT, WIDTH - RIGHT)
    up = _Scale(0.0, ticks[-1], HEIGHT - BOTTOM, TOP)
    labels, unit = axes.time_ticks(seconds)
    parts = [
        _rows(up, [(tick, axes.compact(tick)) for tick in ticks]),
        _columns(across, labels, unit),
        _marks(across, marks),
    ]
    for index, line in enumerate(lines):
        parts.append(_line(across.all(times), up.all(line.values), _colour(index)))
    return _figure(title, "".join(parts), HEIGHT, {index: line.name for index, line in enumerate(lines)})


def cdf_chart(title: str, curves: Sequence[Curve]) -> str:
    """Which share of values is at most so many seconds; seconds on a log axis, without a thousandth at either end."""
    drawn = {index: _middle(curve) for index, curve in enumerate(curves) if curve.values.size and curve.values[-1] > 0}
    if not drawn:
        return _figure(title, _note("nothing was measured"), HEIGHT, {})
    low = min(float(curve.values[0]) for curve in drawn.values()) * 0.95
    high = max(float(curve.values[-1]) for curve in drawn.values()) * 1.05
    across = _Scale(math.log10(low), math.log10(high), LEFT, WIDTH - RIGHT)
    up = _Scale(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    labels = [(math.log10(tick), axes.short(tick)) for tick in axes.log_ticks(low, high)]
    rows = [(tick, f"{tick * 100:.0f} %") for tick in (0.0, 0.25, 0.5, 0.75, 0.95)]
    parts = [_rows(up, rows), _columns(across, labels, "time, log scale, up to p99.9")]
    for index, curve in drawn.items():
        parts.append(_path(across.all(np.log10(curve.values)), up.all(curve.shares), f"line c{_colour(index)}"))
    return _figure(title, "".join(parts), HEIGHT, {index: curve.name for index, curve in drawn.items()})


def bar_chart(title: str, bars: Sequence[tuple[str, float]], show: Callable[[float], str]) -> str:
    """One horizontal bar per name, with its value in words."""
    if not bars:
        return _figure(title, _note("nothing was measured"), HEIGHT, {})
    row, left, right = 24, 150, 90
    height = row * len(bars) + 8
    across = _Scale(0.0, max(max(value for _, value in bars), 1e-300), left, WIDTH - right)
    parts = []
    for index, (name, value) in enumerate(bars):
        y = 4 + index * row
        end = across(value)
        parts.append(
            f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(shorten(name, 24))}<title>{escape(name)}</title></text>'
            f'<rect class="fill c0" x="{left}" y="{y + 4}" width="{end - left:.1f}" height="{row - 8}"/>'
            f'<text x="{end + 6:.1f}" y="{y + 15}">{escape(show(value))}</text>'
        )
    return _figure(title, "".join(parts), height, {})


def shorten(name: str, length: int) -> str:
    """At most `length` characters, the last an ellipsis where some were cut."""
    return name if len(name) <= length else name[: length - 1] + "…"


def _colour(index: int) -> int:
    return index % len(_DASHES)


def _figure(title: str, inside: str, height: int, names: Mapping[int, str]) -> str:
    """The chart with its title, and a legend (colour and name) where it tells apart more than one line."""
    legend = "".join(
        f'<li><svg class="key" width="26" height="8" aria-hidden="true"><path class="line c{_colour(index)}" d="M0 4H26"/></svg>'
        f"{escape(name)}</li>"
        for index, name in names.items()
    )
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}">{inside}</svg>'
        + (f'<ul class="legend">{legend}</ul>' if len(names) > 1 else "")
        + "</figure>"
    )


def _note(text: str) -> str:
    return f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">{escape(text)}</text>'


def _rows(up: _Scale, labels: Iterable[tuple[float, str]]) -> str:
    """Horizontal grid lines and what stands left of them."""
    return "".join(
        f'<path class="grid" d="M{LEFT} {up(value):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{label}</text>'
        for value, label in labels
    )


def _columns(across: _Scale, labels: Iterable[tuple[float, str]], unit: str) -> str:
    """Ticks of the horizontal axis with their labels, and its unit below."""
    base = HEIGHT - BOTTOM
    ticks = "".join(
        f'<path class="grid" d="M{across(value):.1f} {base}v4"/>'
        f'<text x="{across(value):.1f}" y="{base + 16}" text-anchor="middle">{label}</text>'
        for value, label in labels
    )
    return f'{ticks}<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{unit}</text>'


def _marks(across: _Scale, marks: Iterable[tuple[float, str]]) -> str:
    """Vertical marks with tooltips. Events that fall on the same three pixels share one, so their number is bounded."""
    at: dict[int, list[str]] = {}
    for time, what in marks:
        at.setdefault(round(across(time) / 3) * 3, []).append(f"{axes.clock(time)} {what}")
    return "".join(
        f'<path class="mark" d="M{x} {TOP}V{HEIGHT - BOTTOM}"><title>{escape(_several(texts))}</title></path>'
        for x, texts in at.items()
    )


def _several(texts: Sequence[str], shown: int = 5) -> str:
    more = [f"and {len(texts) - shown} more"] if len(texts) > shown else []
    return "\n".join([*texts[:shown], *more])


def _line(x: FloatArray, y: FloatArray, colour: int) -> str:
    """A line in pixels, thinned to what a chart can show."""
    if x.size <= POINTS:
        return _path(x, y, f"line c{colour}")
    starts = np.linspace(0, x.size, POINTS, endpoint=False).astype(np.intp)
    counts = np.diff(np.append(starts, x.size))
    middle = np.add.reduceat(x, starts) / counts
    low, high = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
    band = _path(np.concatenate((middle, middle[::-1])), np.concatenate((low, high[::-1])), f"band fill c{colour}")
    return band + _path(middle, np.add.reduceat(y, starts) / counts, f"line c{colour}")


def _path(x: FloatArray, y: FloatArray, classes: str) -> str:
    points = [f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    if len(points) == 1:
        points *= 2  # a dot, by the line's round ends
    return f'<path class="{classes}" d="M{" ".join(points)}"/>' if points else ""


def _middle(curve: Curve) -> Curve:
    """From p0.1 to p99.9: one straggler would press all else to the side. A log axis has no zero: nothing is below a millionth."""
    inside = (curve.shares > 0.001) & (curve.shares < 0.999)
    ends = np.interp((0.001, 0.999), curve.shares, curve.values)
    values = np.concatenate((ends[:1], curve.values[inside], ends[1:]))
    shares = np.concatenate(((0.001,), curve.shares[inside], (0.999,)))
    return Curve(curve.name, np.maximum(values, values[-1] * 1e-6), shares)
