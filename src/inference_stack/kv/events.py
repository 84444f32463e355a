"""What the prefix cache holds, as a numbered stream: stored, removed, cleared; and snapshots to start from.

A listener that takes a snapshot and applies every later event, or notices a gap and takes another snapshot, knows exactly
which blocks are cached. Knows nothing of sockets; publishing the stream is somebody else's work.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice, repeat
from typing import Any, Final, Literal, NamedTuple

Kind = Literal["stored", "removed", "cleared"]
Named = tuple[bytes, bytes, bytes]
"""A full block: its name, its parent's name, and its tokens as 32-bit integers."""
EVERY_GROUP: Final = -1
"""Instead of a group's number."""


class KvEvent(NamedTuple):
    """One change. `parent` and `tokens` are given for `stored`; `cleared` empties every group."""

    sequence: int
    kind: Kind
    group: int = 0
    block_hash: bytes = b""
    parent: bytes = b""
    tokens: tuple[int, ...] = ()


class Snapshot(NamedTuple):
    """All (group, hash) that were held after event `sequence`."""

    sequence: int
    held: frozenset[tuple[int, bytes]]


class EventLog:
    """The last `capacity` events. Sequence numbers start at 1 and have no gaps. Many are written and few are read, so they are
    kept as bare fields. `on_removed`, if set, is told at once what is forgotten: a group and its hashes, or `EVERY_GROUP`."""

    def __init__(self, capacity: int = 4096) -> None:
        self.sequence = 0
        self.on_removed: Callable[[int, Sequence[bytes]], None] | None = None
        self._buffer: deque[tuple[Any, ...]] = deque(maxlen=capacity)

    def stored(self, group: int, blocks: Sequence[Named]) -> None:
        """The blocks can be found under their names from now on: one event each."""
        self._buffer.extend(zip(repeat("stored"), repeat(group), blocks))
        self.sequence += len(blocks)

    def removed(self, group: int, hashes: Sequence[bytes]) -> None:
        """The blocks are forgotten: one event each."""
        self._buffer.extend(zip(repeat("removed"), repeat(group), hashes))
        self.sequence += len(hashes)
        if self.on_removed is not None:
            self.on_removed(group, hashes)

    def cleared(self) -> None:
        """Everything is forgotten."""
        self.sequence += 1
        self._buffer.append(("cleared",))
        if self.on_removed is not None:
            self.on_removed(EVERY_GROUP, ())

    def since(self, sequence: int) -> list[KvEvent] | None:
        """Events after `sequence`, or None when some of them are no longer buffered (take a snapshot then)."""
        missing = self.sequence - sequence
        if missing < 0 or missing > len(self._buffer):
            return None
        latest = islice(self._buffer, len(self._buffer) - missing, None)
        return [_event(number, *fields) for number, fields in enumerate(latest, sequence + 1)]


def _event(sequence: int, kind: Kind, group: int = 0, what: bytes | Named = b"") -> KvEvent:
    if isinstance(what, bytes):
        return KvEvent(sequence, kind, group, what)
    name, parent, content = what
    return KvEvent(sequence, kind, group, name, parent, tuple(array("i", content)))


def apply(held: set[tuple[int, bytes]], event: KvEvent) -> None:
    """What a listener does with one event, in sequence."""
    if event.kind == "cleared":
        held.clear()
    elif event.kind == "stored":
        held.add((event.group, event.block_hash))
    else:
        held.remove((event.group, event.block_hash))
