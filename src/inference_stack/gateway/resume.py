"""What an SSE `id:` says: a sealed note of which answer a stream is, and how much of it its client has.

    version, identity of the answer │ closed? │ per choice: finished, tokens, cached, hash, node │ MAC
    └──── encoded once per stream ──┘└───────────── encoded once per write ────────────────────┘

Any gateway with the same key opens it again. Only the client that got it can use it, for the very request it was made for.
Knows bytes and numbers: what is done with them is `progress`'s business.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from inference_stack.core.errors import SERVER_ERROR, ErrorInfo, InferenceError, invalid

HEADER: Final = "last-event-id"
VERSION: Final = 1
MAX_CHOICES: Final = 128
"""Streams of more choices carry no ids: they would no longer fit a header."""
MAX_CHARACTERS: Final = 16384
LIFETIME_SECONDS: Final = 86_400
"""How long after its beginning a stream can be resumed."""
SECRET_BYTES: Final = 32

_ALPHABET: Final = re.compile(r"(?:[A-Za-z0-9_-]{4})+")
_HEAD: Final = struct.Struct("<BH")
_CLOSED: Final = struct.Struct("<H")
_RECORD: Final = struct.Struct("<BIi8s4s")
_TOKEN: Final = struct.Struct("<I")
_MAC_BYTES: Final = 16
_NO_NODE: Final = bytes(4)


class Identity(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What must not change inside a stream. `created`, in Unix seconds, is also the time that the chat template saw.

    `seeds` has one entry per prompt. Whoever resumes the stream takes the next higher `generation`. `body` and `principal` are
    digests of the request and of who sent it.
    """

    id: str
    created: int
    seeds: tuple[int, ...]
    generation: int
    numerics_id: str
    body: bytes
    principal: bytes


@dataclass(frozen=True, slots=True)
class Position:
    """How much of one choice the client has: its first `offset` tokens, whose hash is `digest`; and whether its end.

    `cached_tokens` is None while it is not known. `node` hints at who computes it.
    """

    finished: bool = False
    offset: int = 0
    cached_tokens: int | None = None
    digest: bytes = b""
    node: bytes = b""


@dataclass(frozen=True, slots=True)
class Resumption:
    """An opened id. `closed`: nothing but the end mark is missing."""

    identity: Identity
    closed: bool
    positions: tuple[Position, ...]


class Mark:
    """The position of one choice while its stream is being written."""

    __slots__ = ("_hash", "_record", "cached_tokens", "finished", "node", "offset")

    def __init__(self) -> None:
        self.offset = 0
        self.finished = False
        self.cached_tokens: int | None = None
        self.node = _NO_NODE
        self._hash = hashlib.blake2b(digest_size=8)
        self._record = b""

    def add(self, tokens: Sequence[int], finished: bool = False) -> None:
        """These tokens come next; and the end of the choice, where it is `finished`."""
        self._record = b""
        self.finished = finished
        self.offset += len(tokens)
        if len(tokens) == 1:
            self._hash.update(_TOKEN.pack(tokens[0]))
        else:
            self._hash.update(struct.pack(f"<{len(tokens)}I", *tokens))

    def settle(self, position: Position) -> None:
        """The choice ended there, in an earlier connection."""
        cached = -1 if position.cached_tokens is None else position.cached_tokens
        self._record = _RECORD.pack(True, position.offset, cached, position.digest, position.node)

    def digest(self) -> bytes:
        """The hash of all tokens so far."""
        return self._hash.digest()

    def record(self) -> bytes:
        """The position as it stands in an id."""
        if not self._record:
            cached = -1 if self.cached_tokens is None else self.cached_tokens
            self._record = _RECORD.pack(self.finished, self.offset, cached, self._hash.digest(), self.node)
        return self._record


class Stamp:
    """Makes the ids of one stream."""

    __slots__ = ("_mac", "_prefix")

    def __init__(self, key: bytes, identity: Identity) -> None:
        static = _framed(identity)
        self._prefix = base64.urlsafe_b64encode(static)
        self._mac = hashlib.blake2b(static, key=key, digest_size=_MAC_BYTES)

    def id(self, marks: Sequence[Mark], closed: bool = False) -> bytes:
        """The id of an event up to which a client has these positions."""
        if len(marks) == 1:
            state = _CLOSED.pack(closed) + marks[0].record()
        else:
            state = _CLOSED.pack(closed) + b"".join([mark.record() for mark in marks])
        mac = self._mac.copy()
        mac.update(state)
        return self._prefix + base64.urlsafe_b64encode(state + mac.digest())


class ResumeTokens:
    """Seals and opens the ids of one gateway, or of all that share a secret."""

    def __init__(self, secret: bytes) -> None:
        self._key = hashlib.blake2b(secret, digest_size=32, person=b"sse id").digest()
        self._digest_key = hashlib.blake2b(secret, digest_size=32, person=b"sse id digests").digest()

    def body_digest(self, endpoint: str, body: bytes) -> bytes:
        """What binds an id to the request: the endpoint, and the body byte for byte."""
        return self._digest(b"body", endpoint.encode(), body)

    def principal_digest(self, authorization: str, tenant: str) -> bytes:
        """What binds an id to who sent the request."""
        return self._digest(b"principal", authorization.encode(), tenant.encode())

    def _digest(self, *parts: bytes) -> bytes:
        found = hashlib.blake2b(key=self._digest_key, digest_size=16)
        for part in parts:
            found.update(len(part).to_bytes(8, "little"))
            found.update(part)
        return found.digest()

    def stamp(self, identity: Identity) -> Stamp:
        """What makes the ids of a stream."""
        return Stamp(self._key, identity)

    def open(self, token: str, body: bytes, principal: bytes, now: float) -> Resumption:
        """The id that a client sent, for a request and a sender with these digests, at Unix time `now`.

        Raises `InferenceError` (400, `invalid_resume_token`) unless it was made here, for this request and for this sender.
        """
        found = self._unsealed(token)
        if found is None or not hmac.compare_digest(found.identity.principal, principal):
            raise invalid_resume_token("it is none of this service's, or not yours")
        if not hmac.compare_digest(found.identity.body, body):
            raise invalid_resume_token("it belongs to another request; the same body must be sent, byte for byte")
        if now > found.identity.created + LIFETIME_SECONDS:
            raise invalid_resume_token("it is too old")
        return found

    def _unsealed(self, token: str) -> Resumption | None:
        """What a token says; None unless it is, bit for bit, one that was made with our key."""
        if len(token) > MAX_CHARACTERS or not _ALPHABET.fullmatch(token):
            return None
        raw = base64.urlsafe_b64decode(token)
        sealed, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        expected = hashlib.blake2b(sealed, key=self._key, digest_size=_MAC_BYTES).digest()
        if not hmac.compare_digest(mac, expected) or sealed[0] != VERSION:
            return None
        return _parsed(sealed)


def _framed(identity: Identity) -> bytes:
    """The constant part. Its length is a multiple of three, so that it is a whole number of base64 characters."""
    body = msgspec.msgpack.encode(identity)
    return _HEAD.pack(VERSION, len(body)) + body + bytes(-len(body) % 3)


def _parsed(sealed: bytes) -> Resumption:
    _, size = _HEAD.unpack_from(sealed)
    start = _HEAD.size
    identity = msgspec.msgpack.decode(sealed[start : start + size], type=Identity)
    start += size + -size % 3
    (closed,) = _CLOSED.unpack_from(sealed, start)
    records = _RECORD.iter_unpack(sealed[start + _CLOSED.size :])
    positions = (
        Position(bool(finished), offset, None if cached < 0 else cached, digest, node)
        for finished, offset, cached, digest, node in records
    )
    return Resumption(identity, bool(closed), tuple(positions))


def invalid_resume_token(why: str) -> InferenceError:
    """The header cannot be used (400)."""
    return invalid(f"Invalid header 'Last-Event-ID': {why}.", param="Last-Event-ID", code="invalid_resume_token")


def resume_diverged(why: str) -> InferenceError:
    """What the client has is not the beginning of what is computed now, so the stream cannot go on (409)."""
    message = f"The stream cannot be resumed: {why}. Send the request again, without 'Last-Event-ID'."
    return InferenceError(ErrorInfo(message=message, type=SERVER_ERROR, code="resume_diverged", status=409))


def resume_secret(path: str) -> bytes:
    """The secret in a file, white space around it apart; without a file, one made up. Raises `InferenceError`."""
    if not path:
        return secrets.token_bytes(SECRET_BYTES)
    try:
        secret = Path(path).read_bytes().strip()
    except OSError as error:
        raise _bad_key(f"it cannot be read: {error.strerror or error}") from error
    if len(secret) < SECRET_BYTES:
        raise _bad_key(f"it has {len(secret)} bytes; at least {SECRET_BYTES} are needed")
    return secret


def _bad_key(why: str) -> InferenceError:
    return invalid(f"The file of the setting 'gateway.resume_key' is no secret: {why}.", param="gateway.resume_key")
