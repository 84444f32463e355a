"""Messages over a stream socket: a four-byte length, then the encoded message.

`StreamLink` is the asyncio end (a `Link`), `Channel` the blocking end for a worker's threads.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from typing import Any

from inference_stack.core.seams import LinkClosed
from inference_stack.wire.codec import ProtocolError, decode, encode

MAX_FRAME_BYTES = 256 << 20
_LENGTH = struct.Struct("<I")


def frame(message: Any) -> bytes:
    """A message as it goes over a stream."""
    body = encode(message)
    return _LENGTH.pack(len(body)) + body


def _body_length(header: bytes) -> int:
    (length,) = _LENGTH.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(f"frame of {length} bytes")
    return int(length)


class StreamLink:
    """A `Link` over an asyncio stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, sock: socket.socket) -> StreamLink:
        """A link over a connected unix socket, which it owns from now on."""
        return cls(*await asyncio.open_unix_connection(sock=sock, limit=1 << 20))

    async def send(self, message: Any) -> None:
        """Deliver in order; waits while the other side is slow. Raises `LinkClosed`."""
        if self._writer.is_closing():
            raise LinkClosed
        try:
            self._writer.write(frame(message))
            await self._writer.drain()
        except (ConnectionError, RuntimeError) as error:
            raise LinkClosed from error

    async def receive(self) -> Any:
        """The next message. Raises `LinkClosed`, or `ProtocolError` for bytes that are no message."""
        try:
            length = _body_length(await self._reader.readexactly(_LENGTH.size))
            return decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise LinkClosed from error

    async def close(self) -> None:
        """Close this end. Idempotent."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return  # the other end was faster


class Channel:
    """The blocking end. `send` may be called from several threads; `receive` from one."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._sending = threading.Lock()

    def send(self, message: Any) -> None:
        """Deliver in order. Raises `LinkClosed`."""
        data = frame(message)
        try:
            with self._sending:
                self._sock.sendall(data)
        except OSError as error:
            raise LinkClosed from error

    def receive(self) -> Any:
        """Block for the next message. Raises `LinkClosed`."""
        return decode(self._read(_body_length(self._read(_LENGTH.size))))

    def close(self) -> None:
        """Close this end."""
        self._sock.close()

    def _read(self, length: int) -> bytes:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            try:
                count = self._sock.recv_into(view)
            except OSError as error:
                raise LinkClosed from error
            if count == 0:
                raise LinkClosed
            view = view[count:]
        return bytes(data)
