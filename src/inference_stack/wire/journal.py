"""An append-only file of records: written beside serving and bounded in size, readable up to the last whole piece.

    file    magic, then chunks        chunk   length, crc32 (little-endian, 32 bits each), compressed bytes
    bytes   one zlib stream, flushed at the end of every chunk: msgpack arrays of [record's type, fields]

A thread encodes and writes; whoever appends never waits for it. Knows nothing of what records mean.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import msgspec

from inference_stack.core.errors import invalid

MAGIC: Final = b"istack journal 1\n"
FLUSH_SECONDS: Final = 0.5
"""A crash loses no more than what came in this time."""
CHUNK_RECORDS: Final = 4096
"""Records of one chunk, at most."""
BACKLOG: Final = 200_000
"""Records that may wait for a slow disk before the journal ends."""
CLOSED: Final = "closed"
FULL: Final = "full"
SLOW: Final = "slow"
FAILED: Final = "failed"
Cause = Literal["closed", "full", "slow", "failed"]

_HEAD = struct.Struct("<II")
_END: Final = "end"
_RESERVE: Final = 256
"""Bytes kept for the last chunk, which says why the journal ends."""


def _private(path: Path) -> BinaryIO:
    """A new file that nobody else may read."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)


def _encoded(records: Sequence[Any]) -> bytes:
    """NamedTuples as arrays, each with the name of its type."""
    return msgspec.msgpack.encode([(type(record).__name__, record) for record in records])


class JournalWriter:
    """Appends to a new file of at most `limit` bytes. Errors end the journal, never the caller: see `cause` and `trouble`.

    Raises `OSError` when the file cannot be made.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.cause: Cause | None = None
        self.trouble = ""
        self._limit = limit
        self._file = _private(path)
        self._size = self._file.write(MAGIC)
        self._zlib = zlib.compressobj(level=1)
        self._waiting: deque[Any] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Nothing more will be written."""
        return self.cause is not None

    def append(self, record: Any) -> None:
        """Write this soon. Does nothing once the journal has ended."""
        if self.ended:
            return
        self._waiting.append(record)
        if len(self._waiting) > BACKLOG:
            self.cause = SLOW

    def close(self) -> None:
        """Write what is left, and the end."""
        self._closing.set()
        self._thread.join()

    def _work(self) -> None:
        """The writing thread."""
        try:
            while not self.ended:
                closing = self._closing.wait(FLUSH_SECONDS)
                self._write([self._waiting.popleft() for _ in range(len(self._waiting))])
                if closing and not self.ended:
                    self.cause = CLOSED
            self._chunk(msgspec.msgpack.encode([(_END, self.cause)]))
        except OSError as error:
            self.trouble, self.cause = str(error), FAILED
        finally:
            self._waiting.clear()
            self._file.close()

    def _write(self, records: list[Any]) -> None:
        for first in range(0, len(records), CHUNK_RECORDS):
            plain = _encoded(records[first : first + CHUNK_RECORDS])
            near = self._size + len(plain) + len(plain) // 1000 + 2 * _RESERVE > self._limit
            if near and self._size + self._bound(plain) > self._limit:
                self.cause = FULL
                return
            self._chunk(plain)

    def _bound(self, plain: bytes) -> int:
        """What a chunk would take, end included: tried on a copy, since what is in the stream cannot be taken back."""
        trial = self._zlib.copy()
        return len(trial.compress(plain)) + len(trial.flush(zlib.Z_SYNC_FLUSH)) + _HEAD.size + _RESERVE

    def _chunk(self, plain: bytes) -> None:
        packed = self._zlib.compress(plain) + self._zlib.flush(zlib.Z_SYNC_FLUSH)
        whole = _HEAD.pack(len(packed), zlib.crc32(packed)) + packed
        written = 0
        while written < len(whole):
            written += self._file.write(whole[written:])
        self._size += written


class JournalReader:
    """The records of a file, typed as `kinds`. `cause` is known after the last: why the journal ends, None when it was cut off.

    Raises `InferenceError` when there is no such file or it is something else, and from the iteration when a record is none of
    `kinds`.
    """

    def __init__(self, path: Path, kinds: Sequence[type]) -> None:
        self.cause: str | None = None
        self._path = path
        self._envelopes = msgspec.msgpack.Decoder(list[tuple[str, msgspec.Raw]])
        self._decoders = {kind.__name__: msgspec.msgpack.Decoder[Any](kind) for kind in kinds}
        try:
            with path.open("rb") as file:
                foreign = file.read(len(MAGIC)) != MAGIC
        except OSError as error:
            raise invalid(f"{path}: {error.strerror}", param="file") from error
        if foreign:
            raise invalid(f"{path} is no recording, or one of another version", param="file")

    def __iter__(self) -> Iterator[Any]:
        for chunk in self._chunks():
            try:
                for name, fields in self._envelopes.decode(chunk):
                    if name == _END:
                        self.cause = msgspec.msgpack.decode(fields, type=str)
                        return
                    yield self._decoders[name].decode(fields)
            except (msgspec.MsgspecError, KeyError) as error:
                raise invalid(
                    f"{self._path} has a record that is none of this version: {error}", param="file"
                ) from error

    def _chunks(self) -> Iterator[bytes]:
        """Whole chunks, up to the first that is cut off or damaged."""
        stream = zlib.decompressobj()
        with self._path.open("rb") as file:
            file.seek(len(MAGIC))
            while len(head := file.read(_HEAD.size)) == _HEAD.size:
                length, check = _HEAD.unpack(head)
                packed = file.read(length)
                if len(packed) < length or zlib.crc32(packed) != check:
                    return
                yield stream.decompress(packed)
