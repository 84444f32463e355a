"""The client against a real socket server that speaks as the peers do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from bench.peers.client import send, take
from bench.peers.scenarios import Ask, Reply

ASKS = [Ask(text=" one two", ids=(1, 2), max_tokens=3), Ask(text=" three", ids=(3,), max_tokens=2)]


class Upstream(BaseHTTPRequestHandler):
    """Streams as many tokens as asked for, then usage; no final mark, as one of the peers does it."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200 if asked["ignore_eos"] else 400)
        self.end_headers()
        for number in range(asked["max_tokens"]):
            self.event({"choices": [{"text": f" {number}"}]})
        words = len(asked["prompt"].split())
        self.event({"choices": [], "usage": {"prompt_tokens": words, "completion_tokens": asked["max_tokens"]}})

    def event(self, value: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_batch_returns_every_reply_in_order(url: str) -> None:
    replies = send(url, "m", ASKS, {"ignore_eos": True})
    assert [(reply.prompt_tokens, reply.output_tokens, len(reply.events)) for reply in replies] == [
        (2, 3, 3),
        (1, 2, 2),
    ]


def test_arrivals_are_in_order_after_the_start(url: str) -> None:
    [reply] = send(url, "m", ASKS[:1], {"ignore_eos": True})
    assert reply.events == sorted(reply.events)
    assert reply.events[0] > 0


def test_a_refusal_is_an_error(url: str) -> None:
    with pytest.raises(RuntimeError, match="400"):
        send(url, "m", ASKS, {"ignore_eos": False})


def test_an_error_inside_the_stream_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no memory"):
        take({"error": {"message": "no memory"}}, Reply(), 1.0)


def test_a_message_without_text_is_no_arrival() -> None:
    reply = Reply()
    take({"choices": [{"text": ""}]}, reply, 1.0)
    assert reply.events == []
