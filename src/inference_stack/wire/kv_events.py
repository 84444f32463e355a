"""KV events for other routers, over ZeroMQ as vLLM publishes them: PUB for what happens, ROUTER for what was missed.

    published   [topic, sequence (8 bytes, big-endian), batch]    batch: msgpack [seconds since 1970, [event …], rank]
    replayed    asked [sequence]  →  [sequence, batch] from there on, and [-1, ""] at the end

Events are arrays that begin with their names. What is older than the replay buffer is replayed as one batch that clears and stores
what was held then, so that a listener always knows exactly what is cached. Knows nothing of schedulers and blocks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any, Final

import msgspec

from inference_stack.core.errors import invalid

BUFFER_BATCHES: Final = 10_000
"""Batches kept for replay."""
SEND_BATCHES: Final = 10_000
"""Batches that may wait for a slow listener; it misses what comes then, and sees the gap."""
END: Final = (-1).to_bytes(8, "big", signed=True)


class BlockStored(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """Blocks, one after another, with `block_size` tokens each. `parent_block_hash` is None for the beginning of a prompt."""

    block_hashes: tuple[bytes, ...]
    parent_block_hash: bytes | None
    token_ids: tuple[int, ...]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: None = None
    group_idx: int = 0


class BlockRemoved(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """Blocks that are not cached any more."""

    block_hashes: tuple[bytes, ...]
    medium: str | None = None
    group_idx: int = 0


class AllBlocksCleared(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """Nothing is cached any more, in any group."""


KvChange = BlockStored | BlockRemoved | AllBlocksCleared


class KvBatch(msgspec.Struct, array_like=True, frozen=True):
    """What happened in one step."""

    ts: float
    events: tuple[KvChange, ...]
    data_parallel_rank: int | None = None


class Held:
    """Blocks that a listener knows of, in the order in which they were stored."""

    def __init__(self) -> None:
        self._stored: dict[tuple[int, bytes], BlockStored] = {}

    @property
    def blocks(self) -> set[tuple[int, bytes]]:
        """(group, hash) of each."""
        return set(self._stored)

    def apply(self, event: KvChange) -> None:
        """What happened next."""
        match event:
            case BlockStored():
                self._store(event)
            case BlockRemoved(block_hashes=hashes, group_idx=group):
                for name in hashes:
                    self._stored.pop((group, name), None)
            case AllBlocksCleared():
                self._stored.clear()

    def events(self) -> tuple[KvChange, ...]:
        """What makes a listener know these blocks and no others."""
        return (AllBlocksCleared(), *self._stored.values())

    def _store(self, event: BlockStored) -> None:
        parent, size = event.parent_block_hash, event.block_size
        for index, name in enumerate(event.block_hashes):
            tokens = event.token_ids[index * size : (index + 1) * size]
            self._stored[event.group_idx, name] = BlockStored((name,), parent, tokens, size, group_idx=event.group_idx)
            parent = name


class KvPublisher:
    """Publishes on one pair of sockets from a thread of its own; whoever publishes never waits.

    Begins with an `AllBlocksCleared`: what an earlier process published is gone. Raises `InferenceError` when an address is taken.
    """

    def __init__(self, endpoint: str, replay: str, topic: str, now: float, buffer: int = BUFFER_BATCHES) -> None:
        import zmq

        self._zmq = zmq
        self._topic = topic.encode()
        self._limit = buffer
        self._context = zmq.Context()
        self._pub, self._replay = self._bind(zmq.PUB, endpoint), self._bind(zmq.ROUTER, replay)
        self._sleeper, self._waker = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._sleeper.bind("inproc://wake")
        self._waker.connect("inproc://wake")
        self.endpoint, self.replay = (str(socket.last_endpoint.decode()) for socket in (self._pub, self._replay))
        self._waiting: SimpleQueue[KvBatch | None] = SimpleQueue()
        self._buffer: deque[tuple[KvBatch, bytes]] = deque()
        self._older = Held()
        self._sequence = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._thread = threading.Thread(target=self._work, name="kv-events", daemon=True)
        self._thread.start()
        self.publish(now, (AllBlocksCleared(),))

    def publish(self, now: float, events: Sequence[KvChange]) -> None:
        """Tell everybody, in order. `now` in seconds since 1970. To be called from one thread."""
        self._waiting.put(KvBatch(now, tuple(events)))
        self._waker.send(b"")

    def close(self) -> None:
        """Publish what waits, and nothing more."""
        self._waiting.put(None)
        self._waker.send(b"")
        self._thread.join()
        for socket in (self._pub, self._replay, self._sleeper, self._waker):
            socket.close(linger=100)
        self._context.term()

    def _bind(self, kind: int, address: str) -> Any:
        socket = self._context.socket(kind)
        socket.set_hwm(SEND_BATCHES)
        try:
            socket.bind(address)
        except self._zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise invalid(f"KV events cannot be published at {address}: {error}", param="engine.kv_events") from error
        return socket

    def _work(self) -> None:
        """The publishing thread."""
        poller = self._zmq.Poller()
        poller.register(self._sleeper, self._zmq.POLLIN)
        poller.register(self._replay, self._zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            while self._sleeper.poll(0):  # first, so that an answer has everything published before the question
                self._sleeper.recv()
                batch = self._waiting.get()
                if batch is None:
                    return
                self._send(batch)
            if self._replay in ready:
                self._answer(self._replay.recv_multipart())

    def _send(self, batch: KvBatch) -> None:
        data = self._encoder.encode(batch)
        self._pub.send_multipart((self._topic, self._sequence.to_bytes(8, "big"), data))
        self._sequence += 1
        self._buffer.append((batch, data))
        if len(self._buffer) > self._limit:
            for event in self._buffer.popleft()[0].events:
                self._older.apply(event)

    def _answer(self, question: list[bytes]) -> None:
        """Replay for one listener. What is no question is ignored, as other publishers do."""
        if len(question) != 3 or len(question[2]) != 8:
            return
        asker, _, wanted = question
        first, oldest = int.from_bytes(wanted, "big"), self._sequence - len(self._buffer)
        if first < oldest:
            base = KvBatch(self._buffer[0][0].ts, self._older.events())
            self._reply(asker, oldest - 1, self._encoder.encode(base))
        for sequence, (_, data) in enumerate(self._buffer, oldest):
            if sequence >= first:
                self._reply(asker, sequence, data)
        self._replay.send_multipart((asker, b"", END, b""))

    def _reply(self, asker: bytes, sequence: int, data: bytes) -> None:
        self._replay.send_multipart((asker, b"", sequence.to_bytes(8, "big"), data))
