"""Reads settings out of plain mappings, as YAML gives them: by name, type and range, refusing what is left over.

Knows no setting of ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from inference_stack.config import values
from inference_stack.config.build import problem, unknown
from inference_stack.core.errors import InferenceError


class Reader:
    """One mapping. Each method takes one key out of it; `close` refuses keys that nobody took.

    Every method raises `InferenceError` with the key's full name. A `default` of None means that the key is needed.
    """

    def __init__(self, plain: Any, origin: str, path: str = "") -> None:
        self._origin, self._path = origin, path
        if not isinstance(plain, Mapping):
            raise problem(path or origin, f"expected settings by name, not {plain!r}", origin)
        self._left = {str(key): value for key, value in plain.items()}
        self._known: list[str] = []

    def raw(self, key: str) -> Any:
        """Whatever stands there; None if nothing does."""
        self._known.append(key)
        return self._left.pop(key, None)

    def error(self, key: str, message: str) -> InferenceError:
        """An error about that key."""
        return problem(self._full(key), message, self._origin)

    def number(
        self,
        key: str,
        default: float | None = None,
        *,
        low: float = 0.0,
        above: float = -math.inf,
        high: float = math.inf,
    ) -> float:
        """A finite number in [low, high], and more than `above`."""
        given = self.raw(key)
        value: float = self._typed(key, float, given, default)
        if given is None:
            return value
        if not math.isfinite(value):
            raise self.error(key, f"expected a finite number, not {value!r}")
        if value <= above:
            raise self.error(key, f"expected more than {above:g}, not {value!r}")
        if not low <= value <= high:
            least, most = f"at least {low:g}", f" and at most {high:g}" if high < math.inf else ""
            raise self.error(key, f"expected {least}{most}, not {value!r}")
        return value

    def whole(self, key: str, default: int | None = None, *, low: int = 0) -> int:
        """A whole number of at least `low`."""
        value: int = self._typed(key, int, self.raw(key), default)
        if value < low:
            raise self.error(key, f"expected at least {low}, not {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Any text."""
        value: str = self._typed(key, str, self.raw(key), default)
        return value

    def choice(self, key: str, known: Mapping[str, Any], default: str | None = None) -> str:
        """One of those words."""
        value = self.text(key, default)
        if value not in known:
            raise self.error(key, f"expected one of {', '.join(known)}, not {value!r}")
        return value

    def has(self, key: str) -> bool:
        """Whether there is anything under that key. Nothing at all, as YAML's empty value, counts as the key left out."""
        self._known.append(key)
        if self._left.get(key) is None:
            self._left.pop(key, None)
        return key in self._left

    def either(self, key: str, *, low: float) -> float | Reader:
        """A number of at least `low`, or the mapping there."""
        return self.section(key) if isinstance(self._left.get(key), Mapping) else self.number(key, low=low)

    def section(self, key: str) -> Reader:
        """The mapping there; an empty one if there is nothing."""
        given = self.raw(key)
        return Reader({} if given is None else given, self._origin, self._full(key))

    def items(self, key: str) -> list[Reader]:
        """The list of mappings there; an empty one if there is nothing."""
        return [Reader(item, self._origin, f"{self._full(key)}[{index}]") for index, item in enumerate(self._list(key))]

    def one_or_more(self, key: str) -> list[Reader]:
        """The list of mappings there, or the only one; an empty list if there is nothing."""
        return [self.section(key)] if isinstance(self._left.get(key), Mapping) else self.items(key)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value: bool = self._typed(key, bool, self.raw(key), default)
        return value

    def numbers(self, key: str) -> list[float]:
        """The list of finite numbers there, none negative; an empty one if there is nothing."""
        found = [self._typed(key, float, item, None) for item in self._list(key)]
        if not all(0.0 <= value < math.inf for value in found):
            raise self.error(key, "expected finite numbers, none negative")
        return found

    def close(self) -> None:
        """Refuses what is left."""
        for key in self._left:
            raise unknown(self._full(key), [self._full(name) for name in self._known], self._origin)

    def _list(self, key: str) -> list[Any]:
        given = self.raw(key)
        if given is not None and not isinstance(given, list | tuple):
            raise self.error(key, f"expected a list, not {given!r}")
        return list(given or ())

    def _typed(self, key: str, kind: type, given: Any, default: Any) -> Any:
        if given is None:
            if default is None:
                raise self.error(key, "is needed")
            return default
        try:
            return values.typed(kind, given)
        except ValueError as error:
            raise self.error(key, str(error)) from None

    def _full(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key
