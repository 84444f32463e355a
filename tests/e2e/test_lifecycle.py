"""How a server starts, fails to start, and ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import Server

pytestmark = pytest.mark.model

STREAM = {"model": "smollm2", "prompt": "Once", "max_tokens": 40, "ignore_eos": True, "stream": True}


def istack(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inference_stack.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_signal_lets_streams_finish_and_refuses_new_ones(demo_model: Path) -> None:
    server = Server("smollm2").wait_ready()
    body = ""
    refused: list[httpx.Response] = []
    with server.http.stream("POST", "/v1/completions", json=STREAM) as response:
        for line in response.iter_lines():
            if not body:
                server.process.send_signal(signal.SIGTERM)
                thread = threading.Thread(target=lambda: refused.extend(look(server)))
                thread.start()
            body += line + "\n"
    thread.join()
    assert body.rstrip().endswith("data: [DONE]") and '"error"' not in body
    assert [one.status_code for one in refused] == [503, 503]
    assert all("retry-after" in one.headers for one in refused)
    server.http.close()
    assert server.process.wait(30) == 0


def look(server: Server) -> list[httpx.Response]:
    """Readiness and a new request, once the signal has arrived."""
    with httpx.Client(base_url=server.url, timeout=30) as http:
        while (ready := http.get("/ready")).status_code == 200:
            pass
        return [ready, http.post("/v1/completions", json=STREAM | {"stream": False})]


@pytest.mark.slow
def test_an_idle_worker_that_dies_is_replaced(demo_model: Path) -> None:
    server = Server("smollm2").wait_ready()
    dead = server.kill_worker()
    answer = server.http.post("/v1/completions", json={"model": "smollm2", "prompt": "Hi", "max_tokens": 2})
    assert answer.status_code == 200, answer.text
    assert server.worker_pid() != dead
    assert server.stop() == 0


def test_the_worker_does_not_outlive_its_server(demo_model: Path) -> None:
    server = Server("smollm2").wait_ready()
    worker = server.worker_pid()
    server.process.kill()
    server.process.wait(10)
    with pytest.raises(ProcessLookupError):
        for _ in range(10_000):
            os.kill(worker, 0)
            threading.Event().wait(0.01)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["./no-such-model"], "no-such-model"),
        (["smollm2", "--kv-memory", "1KiB"], "--kv-memory"),
        (["smollm2", "--max-running", "none"], "max-running"),
        ([], "no model is named"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(demo_model: Path, arguments: list[str], reason: str) -> None:
    done = istack("serve", *arguments, "--port", "0")
    assert done.returncode not in (0, -11)
    assert reason in done.stderr.splitlines()[-1] or reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_file_is_refused(demo_model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(demo_model.read_bytes()[:1_000_000])
    done = istack("serve", str(damaged), "--port", "0")
    assert done.returncode == 1 and "Traceback" not in done.stderr


def test_an_address_in_use_is_said(server: Server) -> None:
    done = istack("serve", "smollm2", "--port", str(server.port))
    assert done.returncode == 1 and "--port" in done.stderr


def test_a_model_can_be_renamed(demo_model: Path) -> None:
    server = Server(f"ours={demo_model}").wait_ready()
    assert [model["id"] for model in server.http.get("/v1/models").json()["data"]] == ["ours"]
    assert server.stop() == 0


def test_the_description_is_valid_json_with_every_route(server: Server) -> None:
    paths = json.loads(server.http.get("/openapi.json").text)["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/ready", "/metrics"} <= set(paths)
