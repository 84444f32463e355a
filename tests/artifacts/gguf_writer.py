"""A GGUF writer of a few lines, independent of the reader, for files both good and broken."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

STRING, ARRAY, UINT32 = 8, 9, 4
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def scalar(type_id: int, value: object) -> bytes:
    if type_id == STRING:
        assert isinstance(value, str)
        return string(value)
    return struct.pack("<" + FORMATS[type_id], value)


def array(element: int, values: Sequence[object]) -> bytes:
    return struct.pack("<IQ", element, len(values)) + b"".join(scalar(element, value) for value in values)


@dataclass
class Gguf:
    """A file to be: `pairs` of (key, value type, encoded value), `tensors` of (name, dimensions innermost first, type,
    data).
    """

    version: int = 3
    pairs: list[tuple[str, int, bytes]] = field(default_factory=list)
    tensors: list[tuple[str, tuple[int, ...], int, bytes]] = field(default_factory=list)
    alignment: int = 32

    def add(self, key: str, type_id: int, value: object) -> Gguf:
        self.pairs.append((key, type_id, scalar(type_id, value)))
        return self

    def encode(self) -> bytes:
        head = b"GGUF" + struct.pack("<IQQ", self.version, len(self.tensors), len(self.pairs))
        for key, type_id, value in self.pairs:
            head += string(key) + struct.pack("<I", type_id) + value
        data = b""
        for name, dims, type_id, raw in self.tensors:
            head += string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_id, len(data))
            data += raw + b"\0" * (-len(raw) % self.alignment)
        return head + b"\0" * (-len(head) % self.alignment) + data
