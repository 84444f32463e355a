"""Whoever listens, however late and with whatever gaps, knows exactly which blocks are cached."""

import random
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress

import msgspec
import pytest
import zmq

from inference_stack.core.errors import InferenceError
from inference_stack.wire.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Held,
    KvBatch,
    KvChange,
    KvPublisher,
)
from tests.wire.listener import Listener

ANY = "tcp://127.0.0.1:*"


def stored(*names: int, parent: int | None = None, group: int = 0) -> BlockStored:
    tokens = tuple(token for name in names for token in range(name, name + 16))
    hashes = tuple(name.to_bytes(16, "big") for name in names)
    return BlockStored(hashes, None if parent is None else parent.to_bytes(16, "big"), tokens, 16, group_idx=group)


def removed(*names: int, group: int = 0) -> BlockRemoved:
    return BlockRemoved(tuple(name.to_bytes(16, "big") for name in names), group_idx=group)


def key(name: int, group: int = 0) -> tuple[int, bytes]:
    return group, name.to_bytes(16, "big")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


class Counting(KvPublisher):
    """Knows how many batches it was given: from 1, its own first one."""

    given = 0

    def publish(self, now: float, events: Sequence[KvChange]) -> None:
        self.given += 1
        super().publish(now, events)


@pytest.fixture
def publish(stack: ExitStack) -> Callable[..., Counting]:
    def begin(**options: int) -> Counting:
        publisher = Counting(ANY, ANY, "kv@127.0.0.1:1@m", 1.0, **options)
        stack.callback(publisher.close)
        return publisher

    return begin


def listen(stack: ExitStack, publisher: Counting, topic: str = "") -> Listener:
    listener = Listener(publisher.endpoint, publisher.replay, topic)
    stack.callback(listener.close)
    return listener


def hear_from(publisher: Counting, listener: Listener) -> None:
    """Publish until the subscription has come through, and hear all of it: nothing is on its way any more."""
    for _ in range(1_000):
        publisher.publish(1.0, (stored(999_999),))
        if listener.hear(0.02):
            break
    while listener.heard < publisher.given - 1:
        assert listener.hear(), "what was published is not heard"


Publish = Callable[..., Counting]


def test_a_late_listener_learns_what_it_missed(publish: Publish, stack: ExitStack) -> None:
    publisher = publish()
    publisher.publish(2.0, (stored(1, 2, 3), stored(4, parent=2)))
    publisher.publish(3.0, (removed(3),))
    listener = listen(stack, publisher, "kv@")
    hear_from(publisher, listener)
    assert listener.held == {key(1), key(2), key(4), key(999_999)}
    assert listener.parents[key(3)[1]] == key(2)[1] and listener.parents[key(1)[1]] is None
    assert listener.tokens[key(2)[1]] == list(range(2, 18))
    assert listener.topics == {"kv@127.0.0.1:1@m"}


def test_what_follows_a_subscription_is_heard_without_asking(publish: Publish, stack: ExitStack) -> None:
    publisher = publish()
    listener = listen(stack, publisher)
    hear_from(publisher, listener)
    asked, expected = listener.replayed, listener.next
    for name in range(50):
        publisher.publish(2.0, (stored(name),))
    while listener.next < expected + 50:
        assert listener.hear()
    assert listener.replayed == asked
    assert {key(name) for name in range(50)} < listener.held


def test_a_gap_is_noticed_and_filled(publish: Publish, stack: ExitStack) -> None:
    publisher = publish()
    listener = listen(stack, publisher)
    hear_from(publisher, listener)
    for name in range(10):
        publisher.publish(2.0, (stored(name),))
    for _ in range(9):
        listener._sub.recv_multipart()  # lost on the way
    assert listener.hear()
    assert {key(name) for name in range(10)} < listener.held


@pytest.mark.parametrize("seed", range(3))
def test_what_is_older_than_the_buffer_is_told_as_a_whole(publish: Publish, stack: ExitStack, seed: int) -> None:
    chance, publisher, truth = random.Random(seed), publish(buffer=5), Held()
    for step in range(200):
        held = sorted(truth.blocks)
        if chance.random() < 0.02:
            events = [AllBlocksCleared()]
        elif held and chance.random() < 0.4:
            group, name = chance.choice(held)
            events = [removed(int.from_bytes(name, "big"), group=group)]
        else:
            events = [stored(3 * step + 1, 3 * step + 2, group=chance.randrange(2))]
        for event in events:
            truth.apply(event)
        publisher.publish(2.0, events)
    listener = listen(stack, publisher)
    hear_from(publisher, listener)
    assert listener.held - {key(999_999)} == truth.blocks
    assert listener.replayed <= 1 + 5


def test_an_answer_to_somebody_up_to_date_is_only_the_end(publish: Publish, stack: ExitStack) -> None:
    publisher = publish()
    listener = listen(stack, publisher)
    hear_from(publisher, listener)
    before = listener.replayed
    listener.catch_up()
    assert listener.replayed == before


def test_what_is_no_question_is_ignored(publish: Publish, stack: ExitStack) -> None:
    publisher = publish()
    context = zmq.Context()
    stack.callback(lambda: context.destroy(linger=0))
    garbage = context.socket(zmq.DEALER)
    garbage.connect(publisher.replay)
    for frames in ([b"x"], [b"", b"short"], [b"", b"12345678", b"more"]):
        garbage.send_multipart(frames)
    listener = listen(stack, publisher)
    hear_from(publisher, listener)
    assert listener.next > 0


def test_batches_have_the_form_that_others_read() -> None:
    batch = KvBatch(1.5, (stored(1, parent=7), removed(2), AllBlocksCleared()))
    one, two, seven = (name.to_bytes(16, "big") for name in (1, 2, 7))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(batch)) == [
        1.5,
        [
            ["BlockStored", [one], seven, list(range(1, 17)), 16, None, None, None, None, 0],
            ["BlockRemoved", [two], None, 0],
            ["AllBlocksCleared"],
        ],
        None,
    ]


def test_an_address_that_is_taken_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, suppress(zmq.ZMQError):
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InferenceError, match="cannot be published"):
            KvPublisher(address, ANY, "t", 1.0)
