"""HTTP to one external server: its list of models, and streams of server-sent events, with bounds on everything that comes back.

Knows no request and no node. Proxies of the environment are ignored, redirects are not followed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Final

import httpx

from inference_stack.gateway.external_api import Refusal, Unreachable, answer_error, offered

CONNECT_SECONDS: Final = 5.0
CHECK_SECONDS: Final = 5.0
"""How long the list of models may take."""
SILENT_STREAM_SECONDS: Final = 600.0
"""A stream that says nothing for this long is given up; a request may wait in the server's own queue until then."""
IDLE_SECONDS: Final = 2.0
"""How long an idle connection is kept: less than servers do (uvicorn: 5 s), so that none is used while it is being closed."""
MAX_EVENT_BYTES: Final = 1 << 20
MAX_BODY_BYTES: Final = 4 << 20
END: Final = b"[DONE]"


class Server:
    """One server. `url` is its root, before `/v1`; `key` its bearer token, empty for none."""

    def __init__(self, url: str, key: str = "") -> None:
        parts = httpx.URL(url)
        self.name = f"{parts.netloc.decode()}{parts.path.rstrip('/')}"
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/") + "/",
            headers={"accept-encoding": "identity"} | ({"authorization": f"Bearer {key}"} if key else {}),
            timeout=CONNECT_SECONDS,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=IDLE_SECONDS),
            follow_redirects=False,
            trust_env=False,
        )

    async def models(self) -> dict[str, int | None]:
        """What it serves, each with its context length where it says so. Raises `Refusal`."""
        request = self._http.build_request("GET", "v1/models", timeout=CHECK_SECONDS)
        response = await self._send(request)
        try:
            body = await self._body(response)
        finally:
            await response.aclose()
        return offered(body)

    async def stream(
        self, body: bytes, headers: Mapping[str, str], timeout: float = SILENT_STREAM_SECONDS
    ) -> AsyncGenerator[bytes, None]:
        """The data of each event that POST /v1/completions answers with. Raises `InferenceError` for a request that is at fault,
        `Refusal` for everything else. Closing the iterator closes the connection, which stops the server's work."""
        sent = {"content-type": "application/json", **headers}
        limit = httpx.Timeout(timeout, connect=CONNECT_SECONDS)
        response = await self._send(
            self._http.build_request("POST", "v1/completions", content=body, headers=sent, timeout=limit)
        )
        try:
            kind = response.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                raise Refusal(f"it does not stream: its answer is {kind[:80] or 'of no type'}")
            async for line in _lines(response):
                if line.startswith(b"data:"):
                    data = line[5:].strip()
                    if data == END:
                        return
                    yield data
        except httpx.TransportError as error:
            raise Refusal(f"the connection broke: {_text(error)}") from error
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """Its answer, if it is 200."""
        try:
            response = await self._http.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unreachable(f"no connection can be made: {_text(error)}") from error
        except httpx.TransportError as error:
            raise Refusal(f"it does not answer: {_text(error)}") from error
        if response.status_code == 200:
            return response
        try:
            body = await self._body(response)
        finally:
            await response.aclose()
        raise answer_error(response.status_code, body, response.headers.get("retry-after"))

    async def _body(self, response: httpx.Response) -> bytes:
        found = bytearray()
        try:
            async for part in response.aiter_bytes():
                found += part
                if len(found) > MAX_BODY_BYTES:
                    raise Refusal(f"its answer is longer than {MAX_BODY_BYTES} bytes")
        except httpx.TransportError as error:
            raise Refusal(f"the connection broke: {_text(error)}") from error
        return bytes(found)


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line
        if len(rest) > MAX_EVENT_BYTES:
            raise Refusal(f"it sent an event longer than {MAX_EVENT_BYTES} bytes")
    yield rest


def _text(error: Exception) -> str:
    """An error's own words, or its kind where it has none."""
    return str(error) or type(error).__name__
