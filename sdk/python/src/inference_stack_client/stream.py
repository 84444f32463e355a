"""Answers that come piece by piece, blocking and asynchronous. What breaks is mended by the exchange; here it is only sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from types import TracebackType

import httpx

from inference_stack_client.exchange import Exchange
from inference_stack_client.objects import Object


def send(http: httpx.Client, exchange: Exchange) -> httpx.Response:
    """The answer: all of it, or the beginning of a stream. Raises `ClientError`."""
    while True:
        try:
            response = http.send(exchange.request(), stream=exchange.stream)
            if response.status_code < 400:
                if (problem := exchange.opened(response)) is not None:
                    response.close()
                    raise problem
                return response
            response.read()
            wait = exchange.refused(response)
        except httpx.TransportError as error:
            wait = exchange.unreachable(error)
        time.sleep(wait)


async def send_async(http: httpx.AsyncClient, exchange: Exchange) -> httpx.Response:
    """The answer: all of it, or the beginning of a stream. Raises `ClientError`."""
    while True:
        try:
            response = await http.send(exchange.request(), stream=exchange.stream)
            if response.status_code < 400:
                if (problem := exchange.opened(response)) is not None:
                    await response.aclose()
                    raise problem
                return response
            await response.aread()
            wait = exchange.refused(response)
        except httpx.TransportError as error:
            wait = exchange.unreachable(error)
        await asyncio.sleep(wait)


class Stream:
    """An iterable of events, to be read once. Leaving the loop closes the connection, which stops the work behind it.

    `response` is the HTTP response that is being read; a stream that was resumed has had several.
    """

    def __init__(self, http: httpx.Client, exchange: Exchange, response: httpx.Response) -> None:
        self.response = response
        self._http = http
        self._exchange = exchange
        self._closed = False

    def __iter__(self) -> Iterator[Object]:
        try:
            while not self._closed:
                error = None
                try:
                    for received in self.response.iter_bytes():
                        yield from self._exchange.feed(received)
                        if self._exchange.over and not self._exchange.done:
                            break
                except httpx.TransportError as problem:
                    error = problem
                if self._exchange.done:
                    return
                self.response.close()
                time.sleep(self._exchange.broken(error))
                self.response = send(self._http, self._exchange)
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection."""
        self._closed = True
        self.response.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncStream:
    """An asynchronous iterable of events, to be read once. Leaving the loop closes the connection, which stops the work behind
    it.

    `response` is the HTTP response that is being read; a stream that was resumed has had several.
    """

    def __init__(self, http: httpx.AsyncClient, exchange: Exchange, response: httpx.Response) -> None:
        self.response = response
        self._http = http
        self._exchange = exchange
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[Object]:
        try:
            while not self._closed:
                error = None
                try:
                    async for received in self.response.aiter_bytes():
                        for news in self._exchange.feed(received):
                            yield news
                        if self._exchange.over and not self._exchange.done:
                            break
                except httpx.TransportError as problem:
                    error = problem
                if self._exchange.done:
                    return
                await self.response.aclose()
                await asyncio.sleep(self._exchange.broken(error))
                self.response = await send_async(self._http, self._exchange)
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the connection."""
        self._closed = True
        await self.response.aclose()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
