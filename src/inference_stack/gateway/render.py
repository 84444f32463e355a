"""What an answer needs of its renderer, whichever API it belongs to; and how events of a stream are written.

Chunks without logprobs, which is nearly all of them, are joined from bytes encoded once per choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from inference_stack.core.request import FinishReason
from inference_stack.gateway.choice import Choice, Piece
from inference_stack.gateway.replies import ShownFinish

DONE: Final = b"data: [DONE]\n\n"
MARKER: Final = "\x00text\x00"
"""Stands for a chunk's text in the bytes made once per choice; no model or id contains it."""

json_string = msgspec.json.Encoder().encode
COMMENT: Final = b": waiting\n"
"""A line that clients skip. No empty line follows: some clients take one for an event once they have seen an id."""


class Renderer(Protocol):
    """Makes the answer of one job: as events while it runs, or as one object at the end."""

    def opening(self, choice: Choice) -> bytes:
        """The events before a choice's first piece."""
        ...

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        """The events of a piece; none while there is nothing to show."""
        ...

    def closing(self) -> bytes:
        """The events after the last piece, before the end mark."""
        ...

    def whole(self, pieces: Mapping[int, list[Piece]]) -> object:
        """The answer as one object, from each choice's pieces."""
        ...


def event(body: object) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def split_event(body: object) -> tuple[bytes, bytes]:
    """An event's bytes before and after the JSON string `MARKER`, to be joined around other strings later."""
    before, after = event(body).split(json_string(MARKER))
    return before, after


def shown_finish(finish: FinishReason | None) -> ShownFinish:
    """The reason as OpenAI names it. Aborts and errors never come this far."""
    return "length" if finish is FinishReason.LENGTH else "stop"
