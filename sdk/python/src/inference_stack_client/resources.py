"""The API's calls, blocking and asynchronous: arguments in, objects and streams out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar, overload

import httpx

from inference_stack_client.errors import ClientError
from inference_stack_client.exchange import Exchange, Settings
from inference_stack_client.objects import Object, parse
from inference_stack_client.stream import AsyncStream, Stream, send, send_async

T = TypeVar("T")
Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class RawResponse(Generic[T]):
    """An answer with its HTTP response."""

    http_response: httpx.Response
    parsed: T

    @property
    def headers(self) -> httpx.Headers:
        """The answer's headers."""
        return self.http_response.headers

    @property
    def status_code(self) -> int:
        """The answer's status."""
        return self.http_response.status_code

    @property
    def request_id(self) -> str | None:
        """What the server's logs call this request."""
        found: str | None = self.headers.get("x-request-id")
        return found

    def parse(self) -> T:
        """The object or the stream."""
        return self.parsed


def prepared(settings: Settings, path: str, body: dict[str, Any], options: Mapping[str, Any]) -> Exchange:
    """The exchange for a call. `options` are the arguments that are not sent."""
    known = {"timeout", "max_retries", "extra_headers", "extra_body"}
    body = {**body, **{name: value for name, value in options.items() if name not in known}}
    body.update(options.get("extra_body") or {})
    changes = {name: options[name] for name in ("timeout", "max_retries") if options.get(name) is not None}
    headers = {**settings.headers, **(options.get("extra_headers") or {})}
    return Exchange(replace(settings, headers=headers, **changes), "POST", path, body, bool(body.get("stream")))


def answered(response: httpx.Response) -> Any:
    """The answer's JSON. Raises `ClientError` where it is none: something else than the server must have answered."""
    try:
        return parse(response.content)
    except ValueError as error:
        raise ClientError(f"The answer is no JSON: {response.text[:200]!r}") from error


@dataclass(frozen=True)
class Raw:
    """`create` whose answer comes with its HTTP response."""

    http: httpx.Client
    settings: Settings
    path: str

    def create(self, **arguments: Any) -> RawResponse[Any]:
        """Takes what the plain `create` takes."""
        exchange = prepared(self.settings, self.path, {}, arguments)
        response = send(self.http, exchange)
        if exchange.stream:
            return RawResponse(response, Stream(self.http, exchange, response))
        return RawResponse(response, answered(response))


@dataclass(frozen=True)
class AsyncRaw:
    """`create` whose answer comes with its HTTP response."""

    http: httpx.AsyncClient
    settings: Settings
    path: str

    async def create(self, **arguments: Any) -> RawResponse[Any]:
        """Takes what the plain `create` takes."""
        exchange = prepared(self.settings, self.path, {}, arguments)
        response = await send_async(self.http, exchange)
        if exchange.stream:
            return RawResponse(response, AsyncStream(self.http, exchange, response))
        return RawResponse(response, answered(response))


@dataclass(frozen=True)
class ChatCompletions:
    """POST /v1/chat/completions"""

    with_raw_response: Raw

    @overload
    def create(
        self, *, model: str, messages: Sequence[Mapping[str, Any]], stream: Literal[False] = False, **fields: Any
    ) -> Object: ...

    @overload
    def create(
        self, *, model: str, messages: Sequence[Mapping[str, Any]], stream: Literal[True], **fields: Any
    ) -> Stream: ...

    def create(
        self, *, model: str, messages: Sequence[Mapping[str, Any]], stream: bool = False, **fields: Any
    ) -> Object | Stream:
        """Continue a conversation. `fields` are sent as they are, except `timeout`, `max_retries`, `extra_headers` and
        `extra_body`, which are about this call. Raises `ClientError`."""
        answer: Object | Stream = self.with_raw_response.create(
            model=model, messages=messages, stream=stream, **fields
        ).parsed
        return answer


@dataclass(frozen=True)
class AsyncChatCompletions:
    """POST /v1/chat/completions"""

    with_raw_response: AsyncRaw

    @overload
    async def create(
        self, *, model: str, messages: Sequence[Mapping[str, Any]], stream: Literal[False] = False, **fields: Any
    ) -> Object: ...

    @overload
    async def create(
        self, *, model: str, messages: Sequence[Mapping[str, Any]], stream: Literal[True], **fields: Any
    ) -> AsyncStream: ...

    async def create(
        self, *, model: str, messages: Sequence[Mapping[str, Any]], stream: bool = False, **fields: Any
    ) -> Object | AsyncStream:
        """Continue a conversation. `fields` are sent as they are, except `timeout`, `max_retries`, `extra_headers` and
        `extra_body`, which are about this call. Raises `ClientError`."""
        raw = await self.with_raw_response.create(model=model, messages=messages, stream=stream, **fields)
        answer: Object | AsyncStream = raw.parsed
        return answer


@dataclass(frozen=True)
class Completions:
    """POST /v1/completions"""

    with_raw_response: Raw

    @overload
    def create(self, *, model: str, prompt: Prompt, stream: Literal[False] = False, **fields: Any) -> Object: ...

    @overload
    def create(self, *, model: str, prompt: Prompt, stream: Literal[True], **fields: Any) -> Stream: ...

    def create(self, *, model: str, prompt: Prompt, stream: bool = False, **fields: Any) -> Object | Stream:
        """Continue a text. `fields` as for chats. Raises `ClientError`."""
        answer: Object | Stream = self.with_raw_response.create(
            model=model, prompt=prompt, stream=stream, **fields
        ).parsed
        return answer


@dataclass(frozen=True)
class AsyncCompletions:
    """POST /v1/completions"""

    with_raw_response: AsyncRaw

    @overload
    async def create(self, *, model: str, prompt: Prompt, stream: Literal[False] = False, **fields: Any) -> Object: ...

    @overload
    async def create(self, *, model: str, prompt: Prompt, stream: Literal[True], **fields: Any) -> AsyncStream: ...

    async def create(self, *, model: str, prompt: Prompt, stream: bool = False, **fields: Any) -> Object | AsyncStream:
        """Continue a text. `fields` as for chats. Raises `ClientError`."""
        raw = await self.with_raw_response.create(model=model, prompt=prompt, stream=stream, **fields)
        answer: Object | AsyncStream = raw.parsed
        return answer


@dataclass(frozen=True)
class Models:
    """GET /v1/models"""

    http: httpx.Client
    settings: Settings

    def list(self) -> Object:
        """The models that are served, in `data`. Raises `ClientError`."""
        answer: Object = answered(send(self.http, Exchange(self.settings, "GET", "/models", None)))
        return answer


@dataclass(frozen=True)
class AsyncModels:
    """GET /v1/models"""

    http: httpx.AsyncClient
    settings: Settings

    async def list(self) -> Object:
        """The models that are served, in `data`. Raises `ClientError`."""
        response = await send_async(self.http, Exchange(self.settings, "GET", "/models", None))
        answer: Object = answered(response)
        return answer
