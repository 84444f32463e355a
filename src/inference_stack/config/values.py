"""One value: is it what a setting takes? Text from environment and flags is read, typed values from files are checked.

Raises `ValueError` that says what was expected; who the value came from is for the caller to add.
"""

from __future__ import annotations

import math
from typing import Any

from inference_stack.config.schema import Knob
from inference_stack.config.sizes import parse_size

_BOOLS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def read(kind: type, text: str) -> Any:
    """`text` as a bool, int, float or str."""
    try:
        if kind is bool:
            return _BOOLS[text.strip().lower()]
        return kind(text) if kind is str else kind(text.strip())
    except (KeyError, ValueError):
        raise ValueError(f"expected {_EXPECTED[kind]}, not {text!r}") from None


def typed(kind: type, value: Any) -> Any:
    """`value` if it is of `kind`; a whole number also serves as a float. A truth value is never a number."""
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"expected {_EXPECTED[kind]}, not {value!r}")


def within(knob: Knob, value: Any) -> Any:
    """`value` if the setting may have it."""
    if knob.choices and value not in knob.choices:
        raise ValueError(f"expected one of {', '.join(map(str, knob.choices))}, not {value!r}")
    if knob.size and value != "auto":
        parse_size(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected a finite number, not {value!r}")
    if knob.low is not None and value < knob.low:
        raise ValueError(f"expected at least {knob.low:g}, not {value!r}")
    if knob.high is not None and value > knob.high:
        raise ValueError(f"expected at most {knob.high:g}, not {value!r}")
    return value


def accept(knob: Knob, value: Any, *, text: bool) -> Any:
    """The value for a scalar setting. `text`: it was written where everything is text. A size may be a plain number of bytes."""
    if knob.size and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return within(knob, read(knob.type, value) if text and isinstance(value, str) else typed(knob.type, value))
