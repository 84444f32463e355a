"""What a worker publishes of its prefix cache is what its prefix cache holds."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference_stack.config.tree import Config, EngineConfig, TlsConfig
from inference_stack.core.errors import InferenceError
from inference_stack.core.request import Request
from inference_stack.core.seams import SystemClock
from inference_stack.engine.kv_events import KvFeeds, translate
from inference_stack.kv.events import KvEvent
from inference_stack.wire.kv_events import AllBlocksCleared, BlockRemoved, BlockStored
from tests.engine.house import request
from tests.engine.test_simulated import FakeClock, model, start
from tests.wire.listener import Listener

__all__ = ["model"]  # a fixture
ROOT = b"root"


def two_free_ports() -> int:
    """The first of two neighbouring ports that were free a moment ago."""
    for port in range(23_001, 60_000, 2):
        try:
            with socket.create_server(("127.0.0.1", port)), socket.create_server(("127.0.0.1", port + 1)):
                return port
        except OSError:
            continue
    raise AssertionError("no free ports")


@pytest.fixture
def port() -> int:
    return two_free_ports()


@pytest.fixture
def listener(port: int) -> Iterator[Listener]:
    opened = Listener(f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{port + 1}", f"kv@127.0.0.1:{port}@llama")
    yield opened
    opened.close()


def asked(name: str, prompt: list[int]) -> Request:
    return request(prompt, name=name, logprobs=None, max_tokens=4)


def event(number: int, kind: Any, name: bytes = b"", parent: bytes = b"", group: int = 0) -> KvEvent:
    return KvEvent(number, kind, group, name, parent, tuple(range(16)) if kind == "stored" else ())


def test_a_listener_knows_exactly_what_is_cached_while_blocks_come_and_go(
    model: Path, port: int, listener: Listener
) -> None:
    engine = start(model, FakeClock(), kv_events=f"127.0.0.1:{port}", kv_memory="256KiB", max_model_len=200)
    kv = engine.core.instances[0].scheduler.kv
    removals = []
    kv.events.on_removed = lambda group, names: removals.append(names)
    heard = 0
    for number in range(60):
        prompt = [number // 8 % 8, number % 8, *(token % 8 for token in range(98))]
        engine.run([asked(f"r{number}", prompt)])
        heard += listener.hear(0.01)
    listener.catch_up()
    assert heard > 0 and removals
    assert listener.held == kv.index.snapshot().held
    engine.core.close()


def test_the_blocks_of_a_prompt_name_their_tokens_and_parents(model: Path, port: int, listener: Listener) -> None:
    engine = start(model, FakeClock(), kv_events=f"127.0.0.1:{port}")
    prompt = [token % 8 for token in range(48)]
    engine.run([asked("r", prompt)])
    listener.catch_up()
    hasher = engine.core.instances[0].scheduler.kv.hasher
    names = hasher.chain(hasher.root(), prompt)
    assert [listener.parents[name] for name in names] == [None, *names[:-1]]
    assert [token for name in names for token in listener.tokens[name]] == prompt
    engine.core.close()


def test_it_is_off_unless_asked_for() -> None:
    feeds = KvFeeds(Config(), (), SystemClock())
    feeds.flush()
    feeds.close()
    assert feeds.told == {}


def test_where_it_publishes_is_in_the_account(model: Path, port: int) -> None:
    engine = start(model, FakeClock(), kv_events=f"127.0.0.1:{port}")
    assert engine.ready.ledger.derived["llama: KV events"].startswith(f"tcp://127.0.0.1:{port}, replayed at")
    engine.core.close()


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:", "127.0.0.1:0", ":7", "127.0.0.1:65535"])
def test_a_bad_address_is_refused(address: str) -> None:
    with pytest.raises(InferenceError, match="HOST:PORT"):
        KvFeeds(Config(engine=EngineConfig(kv_events=address)), (), SystemClock())


def test_beyond_this_machine_it_must_be_allowed(caplog: pytest.LogCaptureFixture) -> None:
    settings = EngineConfig(kv_events="*:7500")
    with pytest.raises(InferenceError, match="--tls-insecure"):
        KvFeeds(Config(engine=settings), (), SystemClock())
    KvFeeds(Config(engine=settings, tls=TlsConfig(insecure=True)), (), SystemClock())
    assert "INSECURE" in caplog.text


def test_blocks_that_follow_one_another_are_one_event() -> None:
    events = [
        event(1, "stored", b"a", ROOT),
        event(2, "stored", b"b", b"a"),
        event(3, "stored", b"x", b"other"),
        event(4, "stored", b"b", b"a", group=1),
        event(5, "removed", b"b"),
        event(6, "removed", b"x"),
        event(7, "cleared"),
    ]
    tokens = tuple(range(16))
    assert translate(events, ROOT) == [
        BlockStored((b"a", b"b"), None, tokens * 2, 16),
        BlockStored((b"x",), b"other", tokens, 16),
        BlockStored((b"b",), b"a", tokens, 16, group_idx=1),
        BlockRemoved((b"b", b"x")),
        AllBlocksCleared(),
    ]


def test_lost_events_claim_nothing() -> None:
    assert translate(None, ROOT) == [AllBlocksCleared()]
