"""How far a stream has come, choice by choice; and how one goes on that broke off in an earlier connection.

    first tokens of a choice │ known to the client: computed again, compared, not shown │ from here on as ever
                             └──────────── `Replay` ────────────────────────────────────┘

What ids look like is `resume`'s business, what events look like the renderers'.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from starlette.datastructures import Headers

from inference_stack.core.fleet import ModelInfo
from inference_stack.gateway.context import Gateway
from inference_stack.gateway.resume import (
    HEADER,
    MAX_CHOICES,
    Identity,
    Mark,
    Position,
    Resumption,
    invalid_resume_token,
    resume_diverged,
)

GENERATION_SHIFT = 16
"""Of an attempt's number, the upper bits count connections, the lower ones how often a connection's dispatcher moved it."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from. `body` and `principal` are digests; `past` is what its client has of an earlier connection."""

    body: bytes
    principal: bytes
    past: Resumption | None = None


def origin(gateway: Gateway, headers: Headers, path: str, body: bytes, streamed: bool) -> Origin | None:
    """The origin of a request; None unless it is to be `streamed`. Raises `InferenceError` (400) for a bad `Last-Event-ID`."""
    token = headers.get(HEADER)
    if not streamed:
        if token:
            raise invalid_resume_token("only a stream can be resumed")
        return None
    tokens = gateway.resume_tokens
    mine = tokens.principal_digest(headers.get("authorization", ""), "")
    this = tokens.body_digest(path, body)
    past = tokens.open(token, this, mine, gateway.clock.wall()) if token else None
    return Origin(this, mine, past)


class Replay:
    """The tokens of a choice that its client has already. They come again, and must be the same."""

    def __init__(self, position: Position, mark: Mark, numerics_id: str) -> None:
        self._numerics_id = numerics_id
        self._position = position
        self._mark = mark

    @property
    def holder(self) -> bytes:
        """Points at the node that may still compute the choice."""
        return self._position.node

    @property
    def numerics(self) -> str:
        """Says what computed the tokens that the client has; empty where it has none."""
        return self._numerics_id if self.opened else ""

    @property
    def opened(self) -> bool:
        """Whether the client has any event of the choice."""
        return self._position.offset > 0

    @property
    def cached_tokens(self) -> int | None:
        """The prefix hit that the first connection knew of."""
        return self._position.cached_tokens

    def take(self, tokens: Sequence[int]) -> int:
        """How many of the tokens that come next the client has. Raises `InferenceError` (409) where they are not the same."""
        known = min(len(tokens), self._position.offset - self._mark.offset)
        if known:
            self._mark.add(tokens[:known])
            if self.done and self._mark.digest() != self._position.digest:
                raise diverged()
        return known

    @property
    def done(self) -> bool:
        """Whether all of them have come."""
        return self._mark.offset >= self._position.offset


def diverged() -> Exception:
    """The model says something else than it did before."""
    return resume_diverged("the model's answer is not the same as before")


class Progress:
    """Of one stream with `count` choices. `ended` are those that ended in an earlier connection, by index."""

    def __init__(self, gateway: Gateway, identity: Identity, count: int, past: Resumption | None) -> None:
        if past is not None and len(past.positions) != count:
            raise invalid_resume_token("it belongs to another number of choices")
        self.attempt = identity.generation << GENERATION_SHIFT
        self.marks = [Mark() for _ in range(count)]
        self.resumed = past is not None
        self.closed = past is not None and past.closed
        self.ended: dict[int, Position] = {}
        self._replays: dict[int, Replay] = {}
        self._stamp = gateway.resume_tokens.stamp(identity)
        for index, position in enumerate(() if past is None else past.positions):
            if position.finished:
                self.ended[index] = position
                self.marks[index].settle(position)
            else:
                self._replays[index] = Replay(position, self.marks[index], identity.numerics_id)

    def replay(self, index: int) -> Replay | None:
        """What is to be shown to nobody of a choice; None in a first connection."""
        return self._replays.get(index)

    def sealed(self, events: bytes, closed: bool = False) -> bytes:
        """The events with an id in the last of them: who has it has all that was written so far."""
        return b"%bid: %b\n\n" % (events[:-1], self._stamp.id(self.marks, closed)) if events else events


@dataclass(frozen=True, slots=True)
class Beginning:
    """What is drawn when an answer begins, and found again when its stream is resumed. `seeds` is empty for a new answer."""

    id: str
    created: int
    model: ModelInfo
    seeds: tuple[int, ...]
    generation: int
    origin: Origin | None

    @property
    def resumed(self) -> bool:
        """Whether it goes on with a stream that broke off."""
        return self.origin is not None and self.origin.past is not None

    def progress(self, gateway: Gateway, seeds: Sequence[int], count: int) -> Progress | None:
        """The progress of its stream; None where it carries no ids."""
        if self.origin is None or count > MAX_CHOICES:
            return None
        identity = Identity(
            id=self.id,
            created=self.created,
            seeds=tuple(seeds),
            generation=self.generation,
            numerics_id=self.model.numerics_id,
            body=self.origin.body,
            principal=self.origin.principal,
        )
        return Progress(gateway, identity, count, self.origin.past)


def beginning(gateway: Gateway, source: Origin | None, model: ModelInfo, kind: str) -> Beginning:
    """A new answer's, whose id begins with `kind`, or the one that is to be resumed. Raises `InferenceError` (409) where the
    model has changed."""
    now = gateway.clock.wall()
    if source is None or source.past is None:
        return Beginning(f"{kind}-{secrets.token_hex(12)}", int(now), model, (), 0, source)
    was = source.past.identity
    # About the stream's age in milliseconds: an earlier return may have been cut off before it left a trace in any id.
    generation = max(was.generation + 1, int((now - was.created) * 1000))
    return Beginning(was.id, was.created, _unchanged(gateway, model, was.numerics_id), was.seeds, generation, source)


def _unchanged(gateway: Gateway, model: ModelInfo, numerics_id: str) -> ModelInfo:
    """The model as it was when a stream began. Raises `InferenceError` (409) where nothing computes like that any more."""
    if model.numerics_id == numerics_id:
        return model
    for node in gateway.dispatch.nodes():
        if any(info.name == model.name and info.numerics_id == numerics_id for info in node.models):
            return replace(model, numerics_id=numerics_id)
    raise resume_diverged("the model has changed since it began")
