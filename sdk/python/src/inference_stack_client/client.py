"""The two clients: one that blocks, one for asyncio. Both hold a pool of connections and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

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

NO_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100)
"""Streams may be many and long: none waits for another's connection."""


def _addressed(base_url: str | Sequence[str], api_key: str | None, headers: Mapping[str, str] | None) -> Settings:
    """Settings with where to call and as whom."""
    urls = [base_url] if isinstance(base_url, str) else list(base_url)
    if not urls:
        raise ValueError("at least one base_url is needed")
    sent = {"user-agent": "inference-stack-client", **(headers or {})}
    if api_key is not None:
        sent["authorization"] = f"Bearer {api_key}"
    return Settings(tuple(map(_base, urls)), sent)


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

    `base_url` may be a list: when one cannot be reached, the next is asked. `timeout` is the longest silence of a call,
    `connect_seconds` that of a connection attempt; `resume_seconds` is how long a broken stream is tried to be resumed (0:
    never), `idle_seconds` how long a stream may be silent until it counts as broken. `http_client` replaces the pool.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        api_key: str | None = None,
        *,
        timeout: float = 600.0,
        connect_seconds: float = 5.0,
        max_retries: int = 2,
        resume_seconds: float = 60.0,
        idle_seconds: float = 60.0,
        headers: Mapping[str, str] | None = None,
        http_client: httpx.Client | None = None,
    ) -> None:
        settings = replace(
            _addressed(base_url, api_key, headers),
            timeout=timeout,
            connect_seconds=connect_seconds,
            max_retries=max_retries,
            resume_seconds=resume_seconds,
            idle_seconds=idle_seconds,
        )
        self._use(http_client or httpx.Client(follow_redirects=True, limits=NO_LIMITS), settings)

    def _use(self, http: httpx.Client, settings: Settings) -> None:
        self._http, self._settings = http, settings
        self.chat = Chat(ChatCompletions(Raw(http, settings, "/chat/completions")))
        self.completions = Completions(Raw(http, settings, "/completions"))
        self.models = Models(http, settings)

    def with_options(self, **changes: Any) -> Client:
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
        timeout: float = 600.0,
        connect_seconds: float = 5.0,
        max_retries: int = 2,
        resume_seconds: float = 60.0,
        idle_seconds: float = 60.0,
        headers: Mapping[str, str] | None = None,
        http_client: httpx.AsyncClient | None = None,
    ) -> None:
        settings = replace(
            _addressed(base_url, api_key, headers),
            timeout=timeout,
            connect_seconds=connect_seconds,
            max_retries=max_retries,
            resume_seconds=resume_seconds,
            idle_seconds=idle_seconds,
        )
        self._use(http_client or httpx.AsyncClient(follow_redirects=True, limits=NO_LIMITS), settings)

    def _use(self, http: httpx.AsyncClient, settings: Settings) -> None:
        self._http, self._settings = http, settings
        self.chat = AsyncChat(AsyncChatCompletions(AsyncRaw(http, settings, "/chat/completions")))
        self.completions = AsyncCompletions(AsyncRaw(http, settings, "/completions"))
        self.models = AsyncModels(http, settings)

    def with_options(self, **changes: Any) -> AsyncClient:
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
