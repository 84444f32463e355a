"""The prefix index: which full blocks of tokens are remembered, per KV group, and the hashes that name them.

A block's name is a keyed 128-bit BLAKE2b of its parent's name, its 16 tokens and whatever else its content depends on, so
equal names mean equal prefixes. A hit needs every block in full-attention groups, but only the last window in others.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from inference_stack.core.request import BLOCK_TOKENS, Request
from inference_stack.kv.events import EventLog, Named, Snapshot

HASH_BYTES: Final = 16
DEFAULT_KEY: Final = b"inference-stack prefix v1"


class BlockHasher:
    """Names blocks. `key` (up to 64 bytes) is shared by all who must agree on names. Stateless: safe outside the loop."""

    def __init__(self, model: str, key: bytes = DEFAULT_KEY) -> None:
        self._model = model
        self._keyed = blake2b(digest_size=HASH_BYTES, key=key)

    def root(self, adapter: str = "", salt: str = "") -> bytes:
        """The name of the empty prefix: what every block of this model, adapter and tenant descends from."""
        identity = "\0".join((self._model, adapter, salt)).encode()
        state = self._keyed.copy()
        state.update(identity)
        return state.digest()

    def block(self, parent: bytes, content: bytes, extra: bytes = b"") -> bytes:
        """The name of one full block, of which `content` are the packed tokens. `extra` is the content hash of images that its
        placeholder tokens stand for."""
        state = self._keyed.copy()
        state.update(parent + content + extra)
        return state.digest()

    def chain(self, root: bytes, tokens: Sequence[int], extra: Mapping[int, bytes] | None = None) -> list[bytes]:
        """The names of all full blocks of `tokens`. `extra[i]` belongs to block i."""
        names = []
        parent, packed = root, array("i", tokens)
        for index in range(len(tokens) // BLOCK_TOKENS):
            extras = extra.get(index, b"") if extra else b""
            parent = self.block(parent, packed[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS].tobytes(), extras)
            names.append(parent)
        return names

    def extend(self, names: list[bytes], root: bytes, tokens: array[int], start: int, end: int) -> list[Named]:
        """Blocks `start` … `end`-1 of `tokens`. `names` holds the names known so far, and learns those that are not."""
        parent = names[start - 1] if start else root
        blocks = []
        for index in range(start, end):
            content = tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS].tobytes()
            if index < len(names):
                name = names[index]
            else:
                name = self.block(parent, content)
                names.append(name)
            blocks.append((name, parent, content))
            parent = name
        return blocks

    def request_chain(self, request: Request) -> list[bytes]:
        """The names of all full blocks that a request brings along (prompt and emitted tokens)."""
        known = request.continuation.prompt + request.continuation.emitted
        return self.chain(self.root(request.adapter, request.cache_salt), known)


class Match(NamedTuple):
    """A prefix hit of `blocks` blocks. Per group: index of the first block needed, and the blocks from there on."""

    blocks: int
    first: tuple[int, ...]
    found: tuple[tuple[int, ...], ...]


class PrefixIndex:
    """Names to blocks, one dictionary per KV group. `windows[g]` is in tokens (None: full attention)."""

    def __init__(self, windows: Sequence[int | None], events: EventLog) -> None:
        self._windows = tuple(windows)
        self._blocks: tuple[dict[bytes, int], ...] = tuple({} for _ in windows)
        self._events = events

    def store(self, group: int, offered: Sequence[tuple[int, Named]]) -> list[tuple[int, bytes]]:
        """Remember these blocks, but for those of which an equal one is remembered already. Returns the new ones and their
        names."""
        blocks = self._blocks[group]
        stored, events = [], []
        for block, named in offered:
            name = named[0]
            if name not in blocks:
                blocks[name] = block
                stored.append((block, name))
                events.append(named)
        self._events.stored(group, events)
        return stored

    def remove(self, group: int, names: Sequence[bytes]) -> None:
        """Forget blocks."""
        blocks = self._blocks[group]
        for name in names:
            del blocks[name]
        self._events.removed(group, names)

    def clear(self) -> None:
        """Forget everything."""
        for blocks in self._blocks:
            blocks.clear()
        self._events.cleared()

    def block(self, group: int, name: bytes) -> int | None:
        """The block remembered under `name`."""
        return self._blocks[group].get(name)

    def first_needed(self, group: int, blocks: int) -> int:
        """Index of the first block that queries after `blocks` full blocks may read: a window's tail, or 0."""
        window = self._windows[group]
        return 0 if window is None else max(0, blocks * BLOCK_TOKENS - window + 1) // BLOCK_TOKENS

    def match(self, names: Sequence[bytes], limit: int) -> Match:
        """The longest usable prefix of at most `limit` blocks."""
        length = min(limit, len(names))
        for group, window in enumerate(self._windows):
            if window is None:
                length = self._run(group, names, length)
        length = self._windowed(names, length)
        first = tuple([self.first_needed(group, length) for group in range(len(self._windows))])
        found = tuple(
            tuple(map(self._blocks[group].__getitem__, names[start:length])) for group, start in enumerate(first)
        )
        return Match(length, first, found)

    def snapshot(self) -> Snapshot:
        """What is remembered now, and after which event."""
        held = frozenset((group, name) for group, blocks in enumerate(self._blocks) for name in blocks)
        return Snapshot(self._events.sequence, held)

    def _run(self, group: int, names: Sequence[bytes], limit: int) -> int:
        blocks = self._blocks[group]
        for index in range(limit):
            if names[index] not in blocks:
                return index
        return limit

    def _windowed(self, names: Sequence[bytes], limit: int) -> int:
        """The longest length whose window tail every windowed group holds: one forward scan over runs of hits."""
        windowed = [group for group, window in enumerate(self._windows) if window is not None]
        if not windowed:
            return limit
        best = 0
        gap = dict.fromkeys(windowed, -1)
        for index in range(limit):
            for group in windowed:
                if names[index] not in self._blocks[group]:
                    gap[group] = index
            if all(gap[group] < self.first_needed(group, index + 1) for group in windowed):
                best = index + 1
        return best
