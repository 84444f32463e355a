"""Stop strings over a stream of text: find the first one that is completed, hold back only what could still become one.

The answer depends on the text alone, not on how it was cut into deltas. Knows no tokens.

    emitted already │ held: may begin a stop string │ delta …
                    └──────────── searched ─────────────────┘
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class Matched:
    """Text that is now certain, and the stop string that was completed, if one was. Treat as immutable."""

    text: str
    stop: str | None = None


class StopMatcher:
    """Watches text for `stops`. The match that ends first counts; of two that end together, the longer one.

    With `include` the stop string is part of the text, else the text ends before it. Empty stop strings are ignored.
    """

    def __init__(self, stops: Iterable[str], *, include: bool = False) -> None:
        self._stops = tuple(dict.fromkeys(stop for stop in stops if stop))
        self._include = include
        self._held = ""

    def feed(self, delta: str, *, armed: bool = True) -> Matched:
        """Text that may be shown once `delta` has come. While not `armed`, stop strings that end in `delta` do not count."""
        if not self._stops or not delta:
            return Matched(delta)
        held, text = self._held, self._held + delta
        shown = len(held) if self._include else 0
        found = self._first(text, len(held)) if armed else None
        if found is not None:
            start, end = found
            self._held = ""
            return Matched(text[shown : end if self._include else start], text[start:end])
        begin = self._may_begin(text)
        self._held = text[begin:]
        return Matched(text[shown:] if self._include else text[:begin])

    def flush(self) -> str:
        """The text still held back, when no more will come."""
        held, self._held = self._held, ""
        return "" if self._include else held

    def _first(self, text: str, old: int) -> tuple[int, int] | None:
        """The (start, end) that ends first behind position `old`, the longest of those."""
        best: tuple[int, int] | None = None
        for stop in self._stops:
            start = text.find(stop, max(0, old - len(stop) + 1))
            if start >= 0 and (best is None or (start + len(stop), start) < (best[1], best[0])):
                best = (start, start + len(stop))
        return best

    def _may_begin(self, text: str) -> int:
        """Where the longest end of `text` begins that is a proper beginning of a stop string."""
        first = len(text)
        for stop in self._stops:
            at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while 0 <= at < first:
                if stop.startswith(text[at:]):
                    first = at
                else:
                    at = text.find(stop[0], at + 1)
        return first
