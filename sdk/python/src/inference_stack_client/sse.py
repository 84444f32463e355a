"""Server-sent events out of bytes, however the network cut them. Knows the format and nothing of what events say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One event. `id` is None unless the event itself carried one."""

    data: str
    id: str | None = None
    name: str = "message"


class Parser:
    """Feed it bytes, get whole events. An event that was not ended by an empty line never counts."""

    def __init__(self) -> None:
        self._rest = b""
        self._after_return = False
        self._first = True
        self._clear()

    def _clear(self) -> None:
        self._data: list[str] = []
        self._id: str | None = None
        self._name = ""

    def feed(self, received: bytes) -> list[Event]:
        """The events that these bytes complete."""
        events = []
        for line in self._lines(received):
            if line:
                self._field(line)
                continue
            if self._data:
                events.append(Event("\n".join(self._data), self._id, self._name or "message"))
            self._clear()
        return events

    def _lines(self, received: bytes) -> list[str]:
        """Whole lines. A line ends with LF, CR or CRLF; the LF of a CRLF may come later than its CR."""
        if self._after_return and received:
            received = received.removeprefix(b"\n")
            self._after_return = False
        if not received:
            return []
        text = self._rest + received
        self._after_return = text.endswith(b"\r")
        *whole, self._rest = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        lines = [line.decode("utf-8", "replace") for line in whole]
        if lines and self._first:
            self._first = False
            lines[0] = lines[0].removeprefix("\ufeff")
        return lines

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "event":
            self._name = value
