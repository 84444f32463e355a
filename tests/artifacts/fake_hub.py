"""The few routes of the Hugging Face hub that its client needs to fetch a public repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.artifacts.flaky import Flaky

COMMIT = "c0ffee" + "0" * 34


@contextmanager
def serving(repo: str, files: dict[str, bytes], flaky: Flaky | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serve one repository on a free port; its address, and the paths of files that were downloaded."""
    fetched: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(repo, files, fetched, flaky or Flaky()))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(repo: str, files: dict[str, bytes], fetched: list[str], flaky: Flaky) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            name = path.removeprefix(f"/{repo}/resolve/{COMMIT}/")
            if name in files:
                fetched.extend([name] if body else [])
                content, etag = flaky.changed.get(name, files[name]), hashlib.sha256(files[name]).hexdigest()
                flaky.send(self, content, body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
            elif path.startswith(f"/api/models/{repo}/tree/"):
                self.send(200, json.dumps([_entry(*item) for item in files.items()]).encode(), body)
            elif path.startswith(f"/api/models/{repo}/revision/") or path == f"/api/models/{repo}":
                self.send(200, json.dumps({"id": repo, "sha": COMMIT, "siblings": []}).encode(), body)
            else:
                self.send(404, b"{}", body, error="RepoNotFound")

        def send(self, status: int, content: bytes, body: bool, error: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if error:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Tests are quiet."""

    return Handler


def _entry(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
