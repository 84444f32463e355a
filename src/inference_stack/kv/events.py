"""What the prefix cache holds, as a numbered stream: stored, removed, cleared; and snapshots to start from.

A listener that takes a snapshot and applies every later event, or notices a gap and takes another snapshot, knows exactly
which blocks are cached. Knows nothing of sockets; publishing the stream is somebody else's work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import count, islice, repeat
from struct import unpack
from typing import Any, Literal, NamedTuple

Kind = Literal["stored", "removed", "cleared"]


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
    kept as bare fields."""

    def __init__(self, capacity: int = 4096) -> None:
        self.sequence = 0
        self._buffer: deque[tuple[Any, ...]] = deque(maxlen=capacity)

    def stored(self, group: int, block_hash: bytes, parent: bytes, content: bytes) -> None:
        """A block can be found under `block_hash` from now on. `content`: its tokens as little-endian 32-bit integers."""
        self.sequence += 1
        self._buffer.append((self.sequence, "stored", group, block_hash, parent, content))

    def removed(self, group: int, hashes: Sequence[bytes]) -> None:
        """The blocks are forgotten: one event each."""
        self._buffer.extend(zip(count(self.sequence + 1), repeat("removed"), repeat(group), hashes))
        self.sequence += len(hashes)

    def cleared(self) -> None:
        """Everything is forgotten."""
        self.sequence += 1
        self._buffer.append((self.sequence, "cleared"))

    def since(self, sequence: int) -> list[KvEvent] | None:
        """Events after `sequence`, or None when some of them are no longer buffered (take a snapshot then)."""
        missing = self.sequence - sequence
        if missing < 0 or missing > len(self._buffer):
            return None
        return [_event(*event) for event in islice(self._buffer, len(self._buffer) - missing, None)]


def _event(sequence: int, kind: Kind, group: int = 0, name: bytes = b"", parent: bytes = b"", content: bytes = b"") -> KvEvent:
    tokens = unpack(f"<{len(content) // 4}i", content)
    return KvEvent(sequence, kind, group, name, parent, tokens)


def apply(held: set[tuple[int, bytes]], event: KvEvent) -> None:
    """What a listener does with one event, in sequence."""
    if event.kind == "cleared":
        held.clear()
    elif event.kind == "stored":
        held.add((event.group, event.block_hash))
    else:
        held.remove((event.group, event.block_hash))
