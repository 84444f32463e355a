"""Ticks, and numbers in words: what stands beside an axis, in a table and in a headline.

Pure functions from numbers to numbers and text; None reads as a dash.
"""

from __future__ import annotations

import math

NOTHING = "–"

# Steps of a time axis that people count in, in seconds.
_TIME_STEPS = (
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    10800,
    21600,
    43200,
    86400,
    172800,
    604800,
)
_TIME_UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"))


def nice_ticks(high: float, *, whole: bool = False, count: int = 5) -> list[float]:
    """From 0 in about `count` round steps (1, 2, 2.5 or 5 times a power of ten), the last at or above `high`.

    `whole` keeps them to whole numbers.
    """
    high = high if high > 0 else 1.0
    step = _nice_step(high / count)
    step = float(math.ceil(step)) if whole else step
    return [step * index for index in range(math.ceil(round(high / step, 9)) + 1)]


def _nice_step(rough: float) -> float:
    power = float(10.0 ** math.floor(math.log10(rough)))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))


def time_ticks(seconds: float, count: int = 8) -> tuple[list[tuple[float, str]], str]:
    """Where (seconds) and what to write on a time axis from 0 to `seconds`, and the unit written."""
    rough = max(seconds, 1e-9) / count
    step = _time_step(rough)
    size, unit = next(((size, unit) for size, unit in _TIME_UNITS if step >= size), (1, "seconds"))
    last = math.floor(seconds / step + 1e-9)
    return [(step * index, f"{step * index / size:g}") for index in range(last + 1)], unit


def _time_step(rough: float) -> float:
    if rough < 0.5:
        return _nice_step(rough)
    return next((float(step) for step in _TIME_STEPS if step >= rough), 86400 * _nice_step(rough / 86400))


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between `low` and `high`; powers alone over many decades, even steps within one."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    inside = [tick for tick in ticks if low <= tick <= high]
    if len(inside) > 2:
        return inside
    step = _nice_step((high - low) / 4)
    return [step * index for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def duration(seconds: float | None) -> str:
    """850 µs, 84 ms, 1.25 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None:
        return NOTHING
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs" if seconds else "0 s"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 119.5:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def short(seconds: float) -> str:
    """For an axis: 5 ms, 200 s."""
    return f"{seconds:g} s" if seconds >= 1 else duration(seconds)


def clock(seconds: float) -> str:
    """A moment of the run as hours:minutes:seconds, 16:40:07.5."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest / 10:04.1f}"


def number(value: float | None) -> str:
    """Whole numbers in full with thousands apart, others to three digits."""
    if value is None:
        return NOTHING
    if value == round(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def factor(value: float | None) -> str:
    """A ratio: 1.00, 0.96, 12.3, 0.004."""
    if value is None:
        return NOTHING
    return f"{value:.2f}" if 0.1 <= value < 10 else f"{value:.3g}"


def compact(value: float) -> str:
    """For an axis: 500, 2.5k, 3M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def share(value: float | None) -> str:
    """0.973 as 97.3 %. What is not quite everything is never shown as 100 %."""
    if value is None:
        return NOTHING
    digits = 2 if 0.99 < value < 1 else 1
    shown = min(value, 0.9999) if value < 1 else value
    return f"{shown * 100:.{digits}f} %"


def dollars(value: float | None) -> str:
    """US dollars, with cents below a thousand."""
    if value is None:
        return NOTHING
    return f"${value:,.0f}" if value >= 1000 else f"${value:,.2f}" if value >= 0.1 else f"${value:.3g}"
