"""Another router's ear: it knows nothing of ours but vLLM's form of KV events, and rebuilds what is cached."""

from typing import Any

import msgspec
import zmq

END = (-1).to_bytes(8, "big", signed=True)


class Listener:
    """Subscribes, and asks for what it missed. `held` is (group, hash) of every cached block; `heard` the number of the last batch
    that came by subscription, `next` that of the first one not known yet."""

    def __init__(self, endpoint: str, replay: str, topic: str = "") -> None:
        self._context = zmq.Context()
        self._sub = self._context.socket(zmq.SUB)
        self._sub.setsockopt(zmq.SUBSCRIBE, topic.encode())
        self._sub.connect(endpoint)
        self._replay = replay
        self.held: set[tuple[int, bytes]] = set()
        self.parents: dict[bytes, bytes | None] = {}
        self.tokens: dict[bytes, list[int]] = {}
        self.topics: set[str] = set()
        self.heard = -1
        self.next = 0
        self.replayed = 0

    def hear(self, seconds: float = 10.0) -> bool:
        """Take one published batch, after what was missed before it. False when none comes."""
        if not self._sub.poll(seconds * 1000):
            return False
        topic, number, data = self._sub.recv_multipart()
        sequence = int.from_bytes(number, "big")
        self.topics.add(topic.decode())
        self.heard = sequence
        if sequence > self.next:
            self.catch_up()
        if sequence == self.next:
            self._apply(sequence, data)
        return True

    def catch_up(self) -> None:
        """Ask for everything that was missed."""
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RCVTIMEO, 10_000)
        dealer.connect(self._replay)
        dealer.send_multipart([b"", self.next.to_bytes(8, "big")])
        while True:
            _, number, data = dealer.recv_multipart()
            if number == END:
                break
            self._apply(int.from_bytes(number, "big"), data)
            self.replayed += 1
        dealer.close()

    def close(self) -> None:
        self._context.destroy(linger=0)

    def _apply(self, sequence: int, data: bytes) -> None:
        seconds, events, *_ = msgspec.msgpack.decode(data)
        assert isinstance(seconds, float)
        for event in events:
            self._event(*event)
        self.next = sequence + 1

    def _event(self, kind: str, hashes: Any = (), *rest: Any) -> None:
        if kind == "BlockStored":
            parent, tokens, size, _, _, _, _, group = rest
            for index, name in enumerate(hashes):
                self.held.add((group, name))
                self.parents[name], parent = parent, name
                self.tokens[name] = tokens[index * size : (index + 1) * size]
        elif kind == "BlockRemoved":
            self.held -= {(rest[1], name) for name in hashes}
        else:
            assert kind == "AllBlocksCleared"
            self.held.clear()
