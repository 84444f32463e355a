"""The two clients: one that blocks, one for asyncio. Both hold a pool of connections and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, TypedDict

import httpx

from inference_stack_client.exchange import Settings
from inference_stack_client.resources import (
    AsyncChatCompletions,
    AsyncCompletions,
    AsyncModels,
    AsyncRaw,
    ChatCompletions,
    Completions,
    Models,
    Raw,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

NO_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100)
"""Streams may be many and long: none waits for another's connection."""


class Options(TypedDict, total=False):
    """How calls are made, in seconds; the defaults are those of `Settings`. `timeout` is the longest silence of a call,
    `connect_seconds` that of a connection attempt; `resume_seconds` is how long a broken stream is tried to be resumed (0:
    never), `idle_seconds` how long a stream may be silent until it counts as broken."""

    timeout: float
    connect_seconds: float
    max_retries: int
    resume_seconds: float
    idle_seconds: float


def _settings(
    base_url: str | Sequence[str], api_key: str | None, headers: Mapping[str, str] | None, options: Options
) -> Settings:
    """Where to call, as whom and how."""
    urls = [base_url] if isinstance(base_url, str) else list(base_url)
    if not urls:
        raise ValueError("at least one base_url is needed")
    sent = {"user-agent": "inference-stack-client", **(headers or {})}
    if api_key is not None:
        sent["authorization"] = f"Bearer {api_key}"
    return Settings(tuple(map(_base, urls)), sent, **options)


def _base(url: str) -> str:
    """An address with its version: `/v1` unless the URL has a path of its own."""
    parsed = httpx.URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"no HTTP address: {url!r}")
    return str(parsed).rstrip("/") + ("/v1" if parsed.path in ("", "/") else "")


@dataclass(frozen=True)
class Chat:
    """Conversations."""

    completions: ChatCompletions


@dataclass(frozen=True)
class AsyncChat:
    """Conversations."""

    completions: AsyncChatCompletions


class Client:
    """Calls a server, or several that share their `gateway.resume_key`, and blocks until it answers.

    `base_url` may be a list: when one cannot be reached, the next is asked. `http_client` replaces the pool.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        api_key: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        http_client: httpx.Client | None = None,
        **options: Unpack[Options],
    ) -> None:
        http = http_client or httpx.Client(follow_redirects=True, limits=NO_LIMITS)
        self._use(http, _settings(base_url, api_key, headers, options))

    def _use(self, http: httpx.Client, settings: Settings) -> None:
        self._http, self._settings = http, settings
        self.chat = Chat(ChatCompletions(Raw(http, settings, "/chat/completions")))
        self.completions = Completions(Raw(http, settings, "/completions"))
        self.models = Models(http, settings)

    def with_options(self, **changes: Unpack[Options]) -> Client:
        """The same client with other settings, on the same connections."""
        other = object.__new__(Client)
        other._use(self._http, replace(self._settings, **changes))
        return other

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """`Client` for asyncio."""

    def __init__(
        self,
        base_url: str | Sequence[str],
        api_key: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        http_client: httpx.AsyncClient | None = None,
        **options: Unpack[Options],
    ) -> None:
        http = http_client or httpx.AsyncClient(follow_redirects=True, limits=NO_LIMITS)
        self._use(http, _settings(base_url, api_key, headers, options))

    def _use(self, http: httpx.AsyncClient, settings: Settings) -> None:
        self._http, self._settings = http, settings
        self.chat = AsyncChat(AsyncChatCompletions(AsyncRaw(http, settings, "/chat/completions")))
        self.completions = AsyncCompletions(AsyncRaw(http, settings, "/completions"))
        self.models = AsyncModels(http, settings)

    def with_options(self, **changes: Unpack[Options]) -> AsyncClient:
        """The same client with other settings, on the same connections."""
        other = object.__new__(AsyncClient)
        other._use(self._http, replace(self._settings, **changes))
        return other

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
