"""Server-sent events from bytes: feed what arrives, take the complete events' data. Knows nothing of JSON or tokens."""

from __future__ import annotations


class EventParser:
    """Incremental: survives any split, also inside a UTF-8 character, CR LF line ends, comments and multi-line data."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that this chunk completes."""
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        events: list[bytes] = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events
