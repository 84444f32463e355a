"""A server's way of sending a file in parts, breaking the connection where it is told to."""

from __future__ import annotations

from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler


@dataclass
class Flaky:
    """`breaks`: after how many bytes each of the next answers stops, None never; the last one stays. `starts`: where the
    answers so far began. `changed`: other contents than announced, by name.
    """

    breaks: list[int | None] = field(default_factory=lambda: [None])
    ranges: bool = True
    starts: list[int] = field(default_factory=list)
    changed: dict[str, bytes] = field(default_factory=dict)

    def send(self, handler: BaseHTTPRequestHandler, content: bytes, body: bool, headers: dict[str, str]) -> None:
        """Answer a GET or HEAD, from the byte asked for."""
        asked = handler.headers.get("Range", "") if self.ranges else ""
        start = int(asked.removeprefix("bytes=").split("-")[0] or 0) if asked else 0
        handler.send_response(206 if asked else 200)
        for name, value in headers.items():
            handler.send_header(name, value)
        if asked:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        if body:
            self.starts.append(start)
            stop = self.breaks.pop(0) if len(self.breaks) > 1 else self.breaks[0]
            handler.wfile.write(content[start:] if stop is None else content[start : start + stop])
            handler.close_connection = True
