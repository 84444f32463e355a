"""Small numbers for requests on one link, so that a delta costs a few bytes: (id, attempt) ↔ handle.

Both ends keep one table, and forget an entry when its last delta, its loss or its abort has passed; whatever has no entry is
called by its names.
"""

from __future__ import annotations

from collections.abc import Iterable

NAMELESS = 0
"""The handle of what is called by its names."""


class Handles:
    """One end's table. An id has at most one handle: that of its highest attempt."""

    def __init__(self) -> None:
        self.live: dict[str, tuple[int, int]] = {}
        """Of each id: its attempt and its handle."""
        self.names: dict[int, tuple[str, int]] = {}
        """Of each handle: its id and attempt."""
        self._last = NAMELESS

    def assign(self, request_id: str, attempt: int) -> int:
        """The handle of what is about to be sent; `NAMELESS` for an attempt lower than one that was sent."""
        known = self.live.get(request_id)
        if known is not None and known[0] >= attempt:
            return known[1] if known[0] == attempt else NAMELESS
        self._last += 1
        self.learn(request_id, attempt, self._last)
        return self._last

    def learn(self, request_id: str, attempt: int, handle: int) -> None:
        """What the other end assigned."""
        if handle == NAMELESS:
            return
        self.forget((request_id,))
        self.live[request_id] = attempt, handle
        self.names[handle] = request_id, attempt

    def forget(self, request_ids: Iterable[str]) -> None:
        """Nothing more comes of these."""
        for request_id in request_ids:
            known = self.live.pop(request_id, None)
            if known is not None:
                del self.names[known[1]]

    def of(self, request_ids: Iterable[str]) -> list[int]:
        """The handles that these have."""
        return [self.live[request_id][1] for request_id in request_ids if request_id in self.live]

    def drop(self, handles: Iterable[int]) -> None:
        """The other end has forgotten these."""
        self.forget(self.names[handle][0] for handle in list(handles) if handle in self.names)

    def end(self, request_id: str, attempt: int) -> None:
        """The last delta of this attempt has passed."""
        known = self.live.get(request_id)
        if known is not None and known[0] == attempt:
            self.forget((request_id,))
